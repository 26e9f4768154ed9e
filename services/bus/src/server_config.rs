//! The configuration of a `nats-server` of our own, as a child process on loopback.

use std::path::PathBuf;

use mailbell_core::ids::Installation;
use nkeys::KeyPair;
use serde_json::Value;

use crate::{
    BusError, Role, Secret,
    permissions::{Permissions, SYSTEM_USER, permissions, system_permissions},
};

/// The largest message: a page of a folder's list.
pub const MAX_PAYLOAD: usize = 1024 * 1024;
/// A log file of this size is put aside.
const LOG_BYTES: usize = 8 * 1024 * 1024;
/// So many log files are kept, the one in use among them.
const LOG_FILES: usize = 3;

/// How a user of the server proves who it is.
#[derive(Debug, Clone)]
pub enum Login {
    /// By its role's name and this password.
    Password(Secret),
    /// By this public nkey (`U...`).
    NKey(String),
}

impl Login {
    /// By the nkey of this seed. The seed is never sent: who takes the server's port while it is down learns nothing.
    ///
    /// # Errors
    /// [`BusError::Options`] if it is none.
    pub fn of_seed(seed: &Secret) -> Result<Self, BusError> {
        KeyPair::from_seed(seed.expose())
            .map(|pair| Self::NKey(pair.public_key()))
            .map_err(|_| BusError::Options("this is no nkey seed".to_owned()))
    }
}

/// The seed of a new nkey of a user.
///
/// # Errors
/// [`BusError::Options`] if none can be made.
pub fn new_seed() -> Result<Secret, BusError> {
    KeyPair::new_user()
        .seed()
        .map(Secret::new)
        .map_err(|_| BusError::Options("no nkey can be made".to_owned()))
}

/// What the server is to be.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Which Mailbell.
    pub installation: Installation,
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    /// Where its monitoring listens, on 127.0.0.1; off if `None`.
    pub monitor_port: Option<u16>,
    /// Where it stores.
    pub store_dir: PathBuf,
    /// The most it stores, in bytes.
    pub max_file_store: u64,
    /// The file into which it writes its process id, if any.
    pub pid_file: Option<PathBuf>,
    /// The file into which it writes its log, of which two older ones are kept, 8 MiB each; standard error if `None`.
    pub log_file: Option<PathBuf>,
    /// One user a role; a role without one cannot connect.
    pub users: Vec<(Role, Login)>,
}

/// The name of a role's user.
#[must_use]
pub const fn user_name(role: Role) -> &'static str {
    role.as_str()
}

/// The configuration file's text. It may hold passwords: write it with mode 0600.
///
/// # Errors
/// [`BusError::Options`] for a value that cannot stand in the file.
pub fn server_config(config: &ServerConfig) -> Result<Secret, BusError> {
    let ServerConfig {
        installation,
        port,
        monitor_port,
        store_dir,
        max_file_store,
        pid_file,
        log_file,
        users,
    } = config;
    let mut text = String::new();
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    line(format!(
        "server_name: {}",
        quoted(&format!("mailbell-{installation}"))?
    ));
    line(format!("listen: \"127.0.0.1:{port}\""));
    if let Some(port) = monitor_port {
        line(format!("http: \"127.0.0.1:{port}\""));
    }
    if let Some(path) = pid_file {
        line(format!("pid_file: {}", path_text(path)?));
    }
    if let Some(path) = log_file {
        line(format!("log_file: {}", path_text(path)?));
        line(format!("logfile_size_limit: {LOG_BYTES}"));
        line(format!("logfile_max_num: {LOG_FILES}"));
    }
    line(format!("max_payload: {MAX_PAYLOAD}"));
    // An acknowledged event survives a power cut.
    line(format!(
        "jetstream {{\n  store_dir: {}\n  max_file_store: {max_file_store}\n  sync_interval: always\n}}",
        path_text(store_dir)?
    ));
    line("authorization {\n  users: [".to_owned());
    for (role, login) in users {
        let who = match login {
            Login::Password(password) => {
                format!(
                    "user: {}, password: {}",
                    quoted(user_name(*role))?,
                    quoted(password.expose())?
                )
            }
            Login::NKey(key) => format!("nkey: {}", quoted(key)?),
        };
        line(user_line(&who, *role, installation));
    }
    line("  ]\n}".to_owned());
    Ok(Secret::new(text))
}

fn user_line(who: &str, role: Role, installation: &Installation) -> String {
    let permissions = permissions_text(&permissions(role, installation));
    format!("    {{ {who}, permissions: {permissions} }}")
}

/// The variable that holds the password of a role's user in [`users_config`].
#[must_use]
pub fn password_variable(role: Role) -> String {
    format!("MAILBELL_{}_PASSWORD", role.as_str().to_uppercase())
}

/// The users of all roles, to be included in the configuration of servers that run elsewhere. Passwords are variables
/// ([`password_variable`]): a server to which nobody gives them does not start.
#[must_use]
pub fn users_config(installation: &Installation) -> String {
    let mut text = format!(
        "# The NATS users of the Mailbell installation {installation}, each with the subjects that its role needs and no others.\n\
         # The passwords are variables of this file, or of the environment of its server. Instead of user and password a user\n\
         # may have an nkey of its own. Where Mailbell has a NATS account for itself, the list of users belongs into that account.\n\
         authorization {{\n  users: [\n"
    );
    for role in Role::ALL {
        let who = format!(
            "user: \"{}\", password: ${}",
            user_name(role),
            password_variable(role)
        );
        text.push_str(&user_line(&who, role, installation));
        text.push('\n');
    }
    text.push_str("  ]\n}\n");
    text
}

/// The user [`SYSTEM_USER`], to be included beside [`users_config`] where the admin API is to have the servers read renewed files. Its password
/// is the admin's.
#[must_use]
pub fn system_config(installation: &Installation) -> String {
    let password = password_variable(Role::Admin);
    let permissions = permissions_text(&system_permissions(installation));
    format!(
        "# By which the admin API has a server read a renewed certificate, and nothing else.\n\
         accounts {{ $SYS {{ users: [\n    \
         {{ user: \"{SYSTEM_USER}\", password: ${password}, permissions: {permissions} }}\n  ] }} }}\n"
    )
}

/// Permissions as they stand in a server's configuration.
#[must_use]
pub fn permissions_text(permissions: &Permissions) -> String {
    let list = |subjects: &[String]| Value::from(subjects.to_vec()).to_string();
    format!(
        "{{ publish: {{ allow: {} }}, subscribe: {{ allow: {} }} }}",
        list(&permissions.publish),
        list(&permissions.subscribe)
    )
}

fn path_text(path: &std::path::Path) -> Result<String, BusError> {
    quoted(
        path.to_str()
            .ok_or_else(|| BusError::Options("a path that is not UTF-8".to_owned()))?,
    )
}

/// Between quotes nothing is special but the quote itself, a backslash and a line's end.
fn quoted(text: &str) -> Result<String, BusError> {
    if text
        .chars()
        .any(|c| c == '"' || c == '\\' || c.is_control())
    {
        return Err(BusError::Options(
            "a value for the NATS server's configuration holds a quote or a control character"
                .to_owned(),
        ));
    }
    Ok(format!("\"{text}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_breaks_out_of_its_quotes() {
        for bad in ["a\"b", "a\\", "a\nb"] {
            assert!(quoted(bad).is_err());
        }
        let config = ServerConfig {
            installation: Installation::default(),
            port: 4222,
            monitor_port: None,
            store_dir: "/var/lib/mail bell".into(),
            max_file_store: 1 << 30,
            pid_file: None,
            log_file: None,
            users: vec![(Role::Gateway, Login::Password(Secret::new("p\" }")))],
        };
        assert!(server_config(&config).is_err());
    }

    #[test]
    fn a_seed_is_random_and_hidden_and_stays_out_of_the_file() {
        let (one, two) = (new_seed().unwrap(), new_seed().unwrap());
        assert_ne!(one, two);
        assert_eq!(format!("{one:?}"), "***");
        let login = Login::of_seed(&one).unwrap();
        assert!(matches!(&login, Login::NKey(key) if key.starts_with('U')));
        assert!(Login::of_seed(&Secret::new("SUx")).is_err());
        let config = ServerConfig {
            installation: Installation::default(),
            port: 4222,
            monitor_port: None,
            store_dir: "/s".into(),
            max_file_store: 1 << 30,
            pid_file: None,
            log_file: Some("/l".into()),
            users: vec![(Role::Gateway, login)],
        };
        let text = server_config(&config).unwrap();
        assert!(!text.expose().contains(one.expose()));
        assert!(text.expose().contains("logfile_max_num: 3"));
    }
}
