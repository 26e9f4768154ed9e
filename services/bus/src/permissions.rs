//! What each role may publish and subscribe to: least privilege, tested by what is refused.

use mailbell_core::ids::Installation;

use crate::Role;

/// Allow lists of one NATS user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permissions {
    /// Subjects it may publish to.
    pub publish: Vec<String>,
    /// Subjects it may subscribe to.
    pub subscribe: Vec<String>,
}

/// What a role of an installation may do.
#[must_use]
pub fn permissions(role: Role, installation: &Installation) -> Permissions {
    let _ = (role, installation);
    todo!()
}
