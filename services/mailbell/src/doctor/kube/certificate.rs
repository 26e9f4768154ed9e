//! Until when a certificate is good.

use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use crate::certificate::validity;

/// cert-manager renews a certificate of 90 days 30 days before.
const SOON_S: i64 = 14 * DAY_S;
const DAY_S: i64 = 24 * 60 * 60;

/// How long it is good for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Good {
    /// So many days.
    Days(i64),
    /// So many days, which are few.
    Soon(i64),
    /// No longer.
    Expired,
    /// Not yet.
    NotYet,
}

/// Of the first certificate of a file in PEM, which is the server's own. `None`: there is none that can be read.
pub(super) fn good(pem: &[u8], now_s: i64) -> Option<Good> {
    let der = CertificateDer::from_pem_slice(pem).ok()?;
    let (from, until) = validity(&der)?;
    if now_s < from {
        return Some(Good::NotYet);
    }
    let left = until.saturating_sub(now_s);
    let days = left / DAY_S;
    Some(match left {
        ..0 => Good::Expired,
        0..SOON_S => Good::Soon(days),
        _ => Good::Days(days),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_good_for_some_days_and_then_no_longer() {
        let mut params =
            rcgen::CertificateParams::new(vec!["push.example.org".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 4, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let begin = params.not_before.unix_timestamp();
        let at = |day: i64| good(pem.as_bytes(), begin + day * DAY_S).unwrap();
        assert_eq!(at(-1), Good::NotYet);
        assert_eq!(at(0), Good::Days(90));
        assert_eq!(at(76), Good::Days(14));
        assert_eq!(at(77), Good::Soon(13));
        assert_eq!(at(90), Good::Soon(0));
        assert_eq!(at(91), Good::Expired);
        assert_eq!(good(b"no certificate", begin), None);
    }
}
