//! Until when certificates are good: those that this process shows, as a metric, and others.

pub mod trust;

use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use mailbell_runtime::{metrics::Registry, tls::ReloadingCert};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Unit,
};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

/// `tls_certificate_expiry_timestamp_seconds{listener}`: until when the certificate in force is good, since the epoch, of the listeners
/// `push` and `admin`, and `nats`: of those that the NATS servers show, and the authority in `ca.crt` that they are of, what ends first.
pub const EXPIRY: &str = "tls_certificate_expiry_timestamp";

/// From when and until when a certificate is good, in seconds since the epoch. `None`: it cannot be read.
#[must_use]
pub fn validity(der: &CertificateDer<'_>) -> Option<(i64, i64)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let validity = certificate.validity();
    Some((
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    ))
}

/// The names and addresses that it is good for, as it has them. None: it has none, or cannot be read.
#[must_use]
pub fn names(der: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return Vec::new();
    };
    let named = certificate.subject_alternative_name().ok().flatten();
    let all = named.iter().flat_map(|named| &named.value.general_names);
    all.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => Some(IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?).to_string()),
            _ => Some(IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
        },
        _ => None,
    })
    .collect()
}

/// The certificates of this process' listeners, and of others, read at each scrape: they are replaced while it runs.
#[derive(Clone, Default)]
pub struct Certificates(Arc<Mutex<Vec<Shown>>>);

/// By which listener, and until when. `None`: that cannot be read, or is not known.
type Shown = (String, Box<dyn Fn() -> Option<i64> + Send + Sync>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Listener {
    listener: String,
}

impl Certificates {
    /// Registers the metric, once a process.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        registry.register_collector(Box::new(this.clone()));
        this
    }

    /// `flag` is that of the listener's address, such as `--push-listen`.
    pub fn add(&self, flag: &str, certificate: &Arc<ReloadingCert>) {
        let listener = flag.trim_start_matches('-').trim_end_matches("-listen");
        let certificate = Arc::clone(certificate);
        let until = move || Some(validity(&certificate.end_entity()?)?.1);
        self.push(listener, Box::new(until));
    }

    /// That of a listener of others: what is given by the sender, in seconds since the epoch, is told of.
    #[must_use]
    pub fn add_told(&self, listener: &str) -> watch::Sender<Option<i64>> {
        let (sender, told) = watch::channel(None);
        self.push(listener, Box::new(move || *told.borrow()));
        sender
    }

    fn push(&self, listener: &str, until: Box<dyn Fn() -> Option<i64> + Send + Sync>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((listener.to_owned(), until));
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificates")
    }
}

impl Collector for Certificates {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let help = "Until when the certificate in force is good";
        let (unit, kind) = (Some(&Unit::Seconds), MetricType::Gauge);
        let mut family = encoder.encode_descriptor(EXPIRY, help, unit, kind)?;
        for (listener, until) in all.iter() {
            // One that cannot be read says nothing: a zero would be a lie.
            let Some(until) = until() else {
                continue;
            };
            let listener = Listener {
                listener: listener.clone(),
            };
            ConstGauge::new(until).encode(family.encode_family(&listener)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn names_and_addresses_of_a_certificate_are_read() {
        let all = ["a.test", "*.b.test", "192.0.2.1", "2001:db8::1"].map(str::to_owned);
        let params = rcgen::CertificateParams::new(all.to_vec()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let made = params.self_signed(&key).unwrap();
        assert_eq!(names(made.der()), all);
        assert_eq!(
            names(&CertificateDer::from_slice(b"none")),
            Vec::<String>::new()
        );
    }

    #[test]
    fn the_certificate_in_force_is_told_of_after_it_was_replaced_too() {
        let folder = tempfile::tempdir().unwrap();
        let (chain, key_file) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        let write = |year: i32| {
            let mut params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let key = rcgen::KeyPair::generate().unwrap();
            let pem = params.self_signed(&key).unwrap().pem();
            fs::write(&chain, pem).unwrap();
            fs::write(&key_file, key.serialize_pem()).unwrap();
            fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
            params.not_after.unix_timestamp()
        };
        let mut metrics = mailbell_runtime::metrics::Metrics::new("gateway");
        let certificates = Certificates::register(metrics.registry());
        let line = |until: i64| {
            format!(
                "\nmailbell_tls_certificate_expiry_timestamp_seconds{{listener=\"push\"}} {until}\n"
            )
        };
        let first = write(2100);
        let served = ReloadingCert::load(&chain, &key_file).unwrap();
        certificates.add("--push-listen", &served);
        let text = metrics.encode().unwrap();
        assert!(text.contains(&line(first)), "{text}");
        let second = write(2101);
        assert!(served.reload().unwrap());
        let text = metrics.encode().unwrap();
        assert!(text.contains(&line(second)), "{text}");
    }
}
