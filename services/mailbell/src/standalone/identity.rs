//! What a state directory keeps of its installation: who it is, and its secrets.

use std::{fs, net::TcpListener};

use mailbell_admin::{SigningKey, TokenHash};
use mailbell_bus::{
    BusError, Role, Secret, StorageLimits,
    server_config::{Login, ServerConfig, new_seed, server_config},
};
use mailbell_core::ids::Installation;
use mailbell_runtime::{ExitCode, secretfile};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::state_dir::StateDir;
use crate::{
    admin_client::TOKEN_FILE,
    failure::Failure,
    roles::{self, key_ring::RingFile},
};

/// Who the installation is; no secret.
pub const IDENTITY: &str = "identity.json";
/// The watchers' key ring.
pub const KEY_RING: &str = "key.ring";
/// What signs device tokens.
pub const SIGNING_KEY: &str = "signing.pem";
/// The configuration of its NATS server.
pub const NATS_CONFIG: &str = "nats.conf";
/// The process id of its NATS server.
pub const NATS_PID: &str = "nats.pid";
/// The log of its NATS server.
pub const NATS_LOG: &str = "nats.log";

const MIB: u64 = 1024 * 1024;
/// What one machine stores at most: logs 2 GiB, records and checkpoints 2 GiB, and room for the server's own files.
pub const STORAGE: StorageLimits = StorageLimits {
    log_bytes: 128 * MIB,
    state_bytes: 64 * MIB,
    checkpoint_bytes: 64 * MIB,
    credential_bytes: 32 * MIB,
    control_bytes: 128 * MIB,
    live_bytes: 64 * MIB,
    revoked_bytes: 64 * MIB,
};
/// 16 x (128 + 64 + 64 + 32) + 128 + 64 + 64 MiB are 4.8 GiB.
const MAX_FILE_STORE: u64 = 6 * 1024 * MIB;

/// What is remembered from start to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// As which member it owns partitions: a new process on this directory is the same member.
    pub member: String,
    /// Where its NATS server listens.
    pub nats_port: u16,
}

/// The name of the file with the seed of a role's NATS key.
#[must_use]
pub fn seed_file(role: Role) -> String {
    format!("nats-{}.nkey", role.as_str())
}

/// Every secret of a state directory, by file name.
pub fn secret_files() -> impl Iterator<Item = String> {
    [KEY_RING, SIGNING_KEY, TOKEN_FILE, NATS_CONFIG]
        .map(str::to_owned)
        .into_iter()
        .chain(Role::ALL.map(seed_file))
}

impl Identity {
    /// Reads it, or makes it.
    ///
    /// # Errors
    /// What the system said, or that the file is damaged.
    pub fn load(state: &StateDir) -> Result<Self, Failure> {
        let path = state.join(IDENTITY);
        if path.try_exists().unwrap_or(true) {
            let text = fs::read(&path).map_err(|error| {
                Failure::new(
                    ExitCode::NoInput,
                    format!("cannot read {}: {error}", path.display()),
                )
            })?;
            return serde_json::from_slice(&text).map_err(|_| {
                Failure::new(
                    ExitCode::Data,
                    format!("{} is not understood", path.display()),
                )
            });
        }
        let identity = Self {
            member: format!("standalone-{:016x}", rand::random::<u64>()),
            nats_port: free_port()?,
        };
        identity.save(state)?;
        Ok(identity)
    }

    fn save(&self, state: &StateDir) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| Failure::internal(error.to_string()))?;
        Ok(secretfile::write(&state.join(IDENTITY), &text)?)
    }

    /// Another port if somebody else has ours now.
    ///
    /// # Errors
    /// When there is none, or it cannot be remembered.
    pub fn settle_port(&mut self, state: &StateDir) -> Result<(), Failure> {
        if TcpListener::bind(("127.0.0.1", self.nats_port)).is_err() {
            self.nats_port = free_port()?;
            self.save(state)?;
        }
        Ok(())
    }
}

fn free_port() -> Result<u16, Failure> {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map(|addr| addr.port())
        .map_err(|error| Failure::unavailable(format!("no free port on loopback: {error}")))
}

/// The secrets of an installation, each made at its first start with mode 0600.
#[derive(Debug)]
pub struct Secrets {
    /// What signs device tokens.
    pub signing: SigningKey,
    /// Who may call the admin API.
    pub admin: TokenHash,
    seeds: Vec<(Role, Secret)>,
}

impl Secrets {
    /// Reads them, or makes them; and the keys that open passwords, which are kept only once NATS has been asked about others.
    ///
    /// # Errors
    /// When others can read one of them, or one is damaged.
    pub fn load(state: &StateDir) -> Result<(Self, RingFile), Failure> {
        let token = state.secret(TOKEN_FILE, || {
            Zeroizing::new(
                mailbell_admin::new_token(&mut rand::rng())
                    .as_bytes()
                    .to_vec(),
            )
        })?;
        let mut seeds = Vec::new();
        for role in Role::ALL {
            let new = new_seed()?;
            let seed = state.secret(&seed_file(role), || {
                Zeroizing::new(new.expose().as_bytes().to_vec())
            })?;
            seeds.push((role, Secret::new(text(&seed, &seed_file(role))?)));
        }
        let secrets = Self {
            signing: roles::admin::signing_key(&state.join(SIGNING_KEY))?,
            admin: TokenHash::parse(text(&token, TOKEN_FILE)?).map_err(|error| {
                Failure::new(
                    ExitCode::Data,
                    format!("{}: {error}", state.join(TOKEN_FILE).display()),
                )
            })?,
            seeds,
        };
        Ok((secrets, RingFile::read(&state.join(KEY_RING))?))
    }

    /// The seed of a role's key on the installation's own NATS server.
    #[must_use]
    pub fn seed(&self, role: Role) -> Option<Secret> {
        self.seeds
            .iter()
            .find(|(known, _)| *known == role)
            .map(|(_, seed)| seed.clone())
    }

    /// Writes the configuration of the installation's own NATS server.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_server_config(
        &self,
        state: &StateDir,
        identity: &Identity,
        installation: &Installation,
    ) -> Result<(), Failure> {
        let login = |(role, seed): &(Role, Secret)| Ok((*role, Login::of_seed(seed)?));
        let users: Result<Vec<_>, BusError> = self.seeds.iter().map(login).collect();
        let config = server_config(&ServerConfig {
            installation: installation.clone(),
            port: identity.nats_port,
            monitor_port: None,
            store_dir: state.join("nats"),
            max_file_store: MAX_FILE_STORE,
            pid_file: Some(state.join(NATS_PID)),
            log_file: Some(state.join(NATS_LOG)),
            users: users?,
        })?;
        Ok(secretfile::write(
            &state.join(NATS_CONFIG),
            config.expose().as_bytes(),
        )?)
    }
}

fn text<'a>(secret: &'a [u8], name: &str) -> Result<&'a str, Failure> {
    std::str::from_utf8(secret).map(str::trim).map_err(|_| {
        Failure::new(
            ExitCode::Data,
            format!("{name} in the state directory is damaged"),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_second_start_finds_what_the_first_made() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temp.path().join("state")).unwrap();
        let (identity, secrets) = (
            Identity::load(&state).unwrap(),
            Secrets::load(&state).unwrap().0,
        );
        secrets
            .write_server_config(&state, &identity, &Installation::default())
            .unwrap();
        assert_eq!(Identity::load(&state).unwrap(), identity);
        let (again, _) = Secrets::load(&state).unwrap();
        assert_eq!(again.admin, secrets.admin);
        assert_eq!(again.signing.kid(), secrets.signing.kid());
        let setup = secrets.seed(Role::Setup).unwrap();
        assert_eq!(again.seed(Role::Setup).unwrap(), setup);
        assert!(setup != secrets.seed(Role::Gateway).unwrap());
        // The ring is kept only once it is known that no other one is in use.
        for name in secret_files().filter(|name| name != KEY_RING) {
            let mode = fs::metadata(state.join(&name))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let shown = format!("{secrets:?}");
        assert!(!shown.contains(setup.expose()));
    }

    #[test]
    fn a_port_that_somebody_took_is_given_up() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temp.path().join("state")).unwrap();
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut identity = Identity {
            member: "m".to_owned(),
            nats_port: port,
        };
        identity.settle_port(&state).unwrap();
        assert_ne!(identity.nats_port, port);
        assert_eq!(Identity::load(&state).unwrap(), identity);
    }
}
