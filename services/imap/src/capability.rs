//! What a server can do, as far as it matters here.

use std::fmt;

/// A capability that changes what is done here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are those of the RFCs")]
#[non_exhaustive]
pub enum Capability {
    Idle,
    UidPlus,
    CondStore,
    QResync,
    Notify,
    SpecialUse,
    LiteralPlus,
    LiteralMinus,
    /// OBJECTID: EMAILID and THREADID.
    ObjectId,
    /// X-GM-EXT-1: Gmail's ids.
    Gmail,
    Id,
    ListExtended,
    StartTls,
    LoginDisabled,
    SaslIr,
    AuthPlain,
}

const NAMES: [(&str, Capability); 17] = [
    ("IDLE", Capability::Idle),
    ("UIDPLUS", Capability::UidPlus),
    ("CONDSTORE", Capability::CondStore),
    ("QRESYNC", Capability::QResync),
    ("NOTIFY", Capability::Notify),
    ("SPECIAL-USE", Capability::SpecialUse),
    ("LITERAL+", Capability::LiteralPlus),
    ("LITERAL-", Capability::LiteralMinus),
    ("OBJECTID", Capability::ObjectId),
    ("X-GM-EXT-1", Capability::Gmail),
    ("ID", Capability::Id),
    ("LIST-EXTENDED", Capability::ListExtended),
    ("STARTTLS", Capability::StartTls),
    ("LOGINDISABLED", Capability::LoginDisabled),
    ("SASL-IR", Capability::SaslIr),
    ("AUTH=PLAIN", Capability::AuthPlain),
    // Revision 2 has these built in and need not announce them: IDLE is the one that matters.
    ("IMAP4REV2", Capability::Idle),
];

/// The set of capabilities that a server announces. Four bytes, so that a parked connection keeps it.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities(u32);

impl Capabilities {
    /// Whether the server announces it.
    #[must_use]
    pub fn has(self, capability: Capability) -> bool {
        self.0 & (1 << capability as u8) != 0
    }

    pub(crate) fn from_response(list: &[imap_proto::Capability<'_>]) -> Self {
        let mut set = Self::default();
        for capability in list {
            match capability {
                imap_proto::Capability::Imap4rev1 => {}
                imap_proto::Capability::Auth(mechanism) => set.add(&format!("AUTH={mechanism}")),
                imap_proto::Capability::Atom(name) => set.add(name),
            }
        }
        set
    }

    fn add(&mut self, name: &str) {
        for (known, capability) in NAMES {
            if name.eq_ignore_ascii_case(known) {
                self.0 |= 1 << capability as u8;
            }
        }
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = NAMES
            .iter()
            .filter(|(name, capability)| *name != "IMAP4REV2" && self.has(*capability));
        f.debug_set().entries(known.map(|(name, _)| name)).finish()
    }
}
