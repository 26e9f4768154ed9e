//! `addresses.json`: where a standalone installation listens, for the commands that look for it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use mailbell_runtime::{ExitCode, secretfile};
use serde::{Deserialize, Serialize};

use super::state_dir::StateDir;
use crate::failure::Failure;

/// The file's name in the state directory.
const FILE: &str = "addresses.json";
/// No file of ours is larger.
const MAX_BYTES: u64 = 64 * 1024;

/// Where a standalone installation listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Devices.
    pub push: SocketAddr,
    /// Whether devices speak TLS.
    pub push_tls: bool,
    /// With TLS: `host:port` as the certificate has it, if it has a name.
    pub push_authority: Option<String>,
    /// The admin API.
    pub admin: SocketAddr,
    /// Whether the admin API speaks TLS.
    pub admin_tls: bool,
    /// With TLS: `host:port` as the certificate has it, if it has a name.
    pub admin_authority: Option<String>,
    /// Metrics and health.
    pub http: SocketAddr,
    /// NATS.
    pub nats: Vec<String>,
    /// Whether that is the process' own server, of which the state directory has the keys.
    pub own_nats: bool,
    /// The installation's name.
    pub installation: String,
}

impl Addresses {
    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// What the system said.
    pub fn write(&self, directory: &Path) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| Failure::internal(error.to_string()))?;
        Ok(secretfile::write(&directory.join(FILE), &text)?)
    }

    /// Reads the file of a process that runs. What a killed one has left behind is not used: its ports may be somebody else's by
    /// now, who would be given the admin token and passwords.
    ///
    /// # Errors
    /// One line that says what to do.
    pub fn of_running(directory: &Path) -> Result<Self, Failure> {
        let addresses = Self::read(directory)?;
        match StateDir::is_in_use(directory) {
            Ok(true) => Ok(addresses),
            Ok(false) => Err(Failure::unavailable(format!(
                "the standalone installation on {} runs no more, it was killed: start it again with `mailbell standalone`",
                directory.display()
            ))),
            Err(error) => Err(Failure::new(
                ExitCode::NoInput,
                format!(
                    "cannot see whether {} is in use: {error}",
                    directory.display()
                ),
            )),
        }
    }

    /// Reads the file. It may be stale: a process that was killed leaves it behind.
    ///
    /// # Errors
    /// One line that says what to do.
    pub fn read(directory: &Path) -> Result<Self, Failure> {
        let path = directory.join(FILE);
        let large = fs::metadata(&path).is_ok_and(|meta| meta.len() > MAX_BYTES);
        let text = match fs::read(&path) {
            Ok(text) if !large => text,
            Ok(_) => Vec::new(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Failure::unavailable(format!(
                    "no standalone installation runs on {}: start one with `mailbell standalone`, or say where the service is",
                    directory.display()
                )));
            }
            Err(error) => {
                return Err(Failure::new(
                    ExitCode::NoInput,
                    format!("cannot read {}: {error}", path.display()),
                ));
            }
        };
        serde_json::from_slice(&text).map_err(|_| {
            Failure::new(
                ExitCode::Data,
                format!(
                    "{} is not understood: start the installation again",
                    path.display()
                ),
            )
        })
    }

    /// For the command line on the same machine.
    #[must_use]
    pub fn admin_url(&self) -> String {
        url(self.admin_tls, self.admin, self.admin_authority.as_deref())
    }

    /// For devices on the same machine.
    #[must_use]
    pub fn push_url(&self) -> String {
        url(self.push_tls, self.push, self.push_authority.as_deref())
    }

    /// Whether no client can find the certificate good at [`Addresses::push_url`].
    #[must_use]
    pub fn push_needs_name(&self) -> bool {
        self.push_tls && self.push_authority.is_none()
    }
}

/// Removes the file, if there is one.
///
/// # Errors
/// One line that says what is in the way.
pub fn remove(directory: &Path) -> Result<(), Failure> {
    let path = directory.join(FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Failure::new(
            ExitCode::CannotCreate,
            format!("cannot remove {}: {error}", path.display()),
        )),
        _ => Ok(()),
    }
}

fn url(tls: bool, addr: SocketAddr, authority: Option<&str>) -> String {
    match (tls, authority) {
        (true, Some(authority)) => format!("https://{authority}"),
        (true, None) => format!("https://{}", reachable(addr)),
        (false, _) => format!("http://{}", reachable(addr)),
    }
}

/// "Every address" is no address to connect to.
pub(super) fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_found() {
        let temp = tempfile::tempdir().unwrap();
        let directory = &temp.path().join("state");
        let failure = Addresses::read(directory).unwrap_err();
        assert_eq!(failure.code, ExitCode::Unavailable);
        assert!(failure.message.contains("mailbell standalone"));
        let addresses = Addresses {
            pid: 1,
            version: "0.1.0".to_owned(),
            push: "0.0.0.0:7443".parse().unwrap(),
            push_tls: true,
            push_authority: None,
            admin: "[::]:7444".parse().unwrap(),
            admin_tls: false,
            admin_authority: None,
            http: "127.0.0.1:7445".parse().unwrap(),
            nats: vec!["nats://127.0.0.1:4222".to_owned()],
            own_nats: true,
            installation: "main".to_owned(),
        };
        drop(StateDir::open(directory).unwrap());
        addresses.write(directory).unwrap();
        let read = Addresses::read(directory).unwrap();
        assert_eq!(read, addresses);
        assert_eq!(read.push_url(), "https://127.0.0.1:7443");
        assert_eq!(read.admin_url(), "http://[::1]:7444");
        assert!(read.push_needs_name());
        let named = Addresses {
            push_authority: Some("push.example.org:7443".to_owned()),
            ..read
        };
        assert_eq!(named.push_url(), "https://push.example.org:7443");
        assert!(!named.push_needs_name());
        // Nobody holds the lock: it is of a process that is gone.
        let failure = Addresses::of_running(directory).unwrap_err();
        assert_eq!(failure.code, ExitCode::Unavailable);
        assert!(failure.message.contains("killed"), "{failure}");
        let state = StateDir::open(directory).unwrap();
        Addresses::of_running(directory).unwrap();
        drop(state);
        fs::write(directory.join(FILE), "{").unwrap();
        assert_eq!(Addresses::read(directory).unwrap_err().code, ExitCode::Data);
    }
}
