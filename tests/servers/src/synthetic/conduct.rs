//! How the server treats those who come.

use std::collections::BTreeMap;
use std::time::Duration;

/// What a test may change at any moment.
#[derive(Debug, Clone, Default)]
pub struct Conduct {
    /// Nobody is let in: the system refuses the connection.
    pub refuse_connections: bool,
    /// The first word to those who are let in.
    pub greeting: Greeting,
    /// What everybody is told who logs in, and has not been named.
    pub login: LoginAnswer,
    /// What these users are told.
    pub login_of: BTreeMap<usize, LoginAnswer>,
    /// A user may have so many sessions at once; to one more it says that they are too many.
    pub most_sessions: Option<usize>,
    /// How long it takes to answer.
    pub delays: Delays,
}

impl Conduct {
    /// What a user is told who gives the right password.
    pub(super) fn login_of(&self, user: usize) -> LoginAnswer {
        self.login_of.get(&user).copied().unwrap_or(self.login)
    }
}

/// The first word of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Greeting {
    /// It is welcome.
    #[default]
    Ok,
    /// The service is not available: BYE, and the end of the connection.
    Unavailable,
    /// There are too many connections: BYE, and the end.
    TooManyConnections,
    /// None, for ever, as of a host whose mail server hangs.
    Silence,
}

/// The answer to a login with the right password. A wrong one is refused whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoginAnswer {
    /// The user is logged in.
    #[default]
    Ok,
    /// The password is wrong.
    WrongPassword,
    /// There are too many connections of this user; the connection stays.
    TooManyConnections,
    /// The server can't ask whoever knows the passwords; the connection stays.
    Unavailable,
    /// The connection ends without a word.
    HangUp,
}

/// How long the server takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delays {
    /// Until the greeting.
    pub greeting: Duration,
    /// Until the answer to a login.
    pub login: Duration,
    /// Until the answer to any other command, the end of IDLE included.
    pub command: Duration,
}
