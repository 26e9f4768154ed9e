//! What a private Dovecot is configured with. Dovecot 2.4 has other names for some settings of 2.3, and takes no file without its version.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::process::Command;

use super::{DovecotOptions, MAIL_ID, is_root};

/// A version by how its configuration is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V2_3,
    /// And those after it, which read a file that says that it is for 2.4.0.
    V2_4,
}

impl Version {
    /// Asks the program.
    pub(super) fn of(dovecot: &Path) -> io::Result<Self> {
        let failed = |what: &dyn std::fmt::Display| {
            io::Error::other(format!("{} --version: {what}", dovecot.display()))
        };
        let output = Command::new(dovecot)
            .arg("--version")
            .output()
            .map_err(|error| failed(&error))?;
        let said = String::from_utf8_lossy(&output.stdout);
        Self::parse(&said)
            .ok_or_else(|| failed(&format_args!("{:?}, not Dovecot 2.3 or 2.4", said.trim())))
    }

    /// Reads what `dovecot --version` prints, as `2.3.19.1 (9b53102964)` or `2.4.1-4 (7d8c0e5759)`.
    fn parse(said: &str) -> Option<Self> {
        let mut numbers = said.split(|c: char| !c.is_ascii_digit());
        let mut number = || numbers.next()?.parse::<u32>().ok();
        match (number()?, number()?) {
            (2, 3) => Some(Self::V2_3),
            version if version >= (2, 4) => Some(Self::V2_4),
            _ => None,
        }
    }
}

/// Where it listens.
#[derive(Debug)]
pub(super) struct Ports {
    pub(super) imap: u16,
    pub(super) imaps: u16,
    pub(super) lmtp: u16,
}

/// The whole file: what the versions write differently, what is the same for all, and what the options add.
pub(super) fn text(
    version: Version,
    options: &DovecotOptions,
    base: &Path,
    ports: &Ports,
) -> String {
    let base = base.display();
    let storage = options.storage.name();
    let (uid, gid) = if is_root() {
        (MAIL_ID.to_string(), MAIL_ID.to_string())
    } else {
        (id("-u"), id("-g"))
    };
    let differs = match version {
        Version::V2_3 => format!(
            "\
default_vsz_limit = 0
mail_location = {storage}:{base}/mail/%u
ssl_cert = <{base}/cert.pem
ssl_key = <{base}/key.pem
disable_plaintext_auth = no
passdb {{
  driver = passwd-file
  args = username_format=%u {base}/passwd
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={base}/mail/%u
}}
service imap-login {{
  service_count = 0
}}
"
        ),
        // The versions that it names come first. Later ones than 2.4.0 change defaults, among them how many deliveries a user may have.
        Version::V2_4 => format!(
            "\
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
default_vsz_limit = unlimited
mail_driver = {storage}
mail_path = {base}/mail/%{{user}}
ssl_server_cert_file = {base}/cert.pem
ssl_server_key_file = {base}/key.pem
auth_allow_cleartext = yes
passdb passwd-file {{
  auth_username_format = %{{user}}
  passwd_file_path = {base}/passwd
}}
userdb static {{
  fields {{
    uid = {uid}
    gid = {gid}
    home = {base}/mail/%{{user}}
  }}
}}
service imap-login {{
  restart_request_count = unlimited
}}
"
        ),
    };
    let same = same(base, ports);
    let own = if is_root() { String::new() } else { own() };
    let capability = options
        .capability
        .as_ref()
        .map(|list| format!("imap_capability = {list}\n"))
        .unwrap_or_default();
    format!("{differs}{same}{own}{capability}{}\n", options.config)
}

/// What every version takes.
fn same(base: impl std::fmt::Display, Ports { imap, imaps, lmtp }: &Ports) -> String {
    let mut text = format!(
        "\
base_dir = {base}/run
state_dir = {base}/run
instance_name = mailbell-test
log_path = {base}/log
info_log_path = {base}/log
debug_log_path = {base}/log
protocols = imap lmtp
listen = 127.0.0.1
ssl = yes
auth_mechanisms = plain login
auth_failure_delay = 0
mail_max_userip_connections = 0
default_process_limit = 4096
default_client_limit = 16384
mailbox_idle_check_interval = 2 secs
service imap-login {{
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = {imaps}
    ssl = yes
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    port = {lmtp}
  }}
}}
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
namespace inbox {{
  inbox = yes
  separator = /
"
    );
    for folder in ["Drafts", "Sent", "Junk", "Trash"] {
        let _ = writeln!(
            text,
            "  mailbox {folder} {{\n    special_use = \\{folder}\n    auto = create\n  }}"
        );
    }
    text + "}\n"
}

/// Nobody else to become: every service runs as whoever runs the test, and chroot needs root.
fn own() -> String {
    let (user, group) = (id("-un"), id("-gn"));
    let mut text = format!(
        "\
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
first_valid_uid = 1
first_valid_gid = 1
service lmtp {{
  user = {user}
}}
service auth-worker {{
  user = {user}
}}
"
    );
    for service in ["anvil", "imap-login", "stats"] {
        let _ = writeln!(text, "service {service} {{\n  chroot =\n}}");
    }
    text
}

fn id(option: &str) -> String {
    let output = Command::new("id")
        .arg(option)
        .output()
        .map(|output| output.stdout)
        .unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn versions_are_read_as_they_are_printed() {
        for (said, version) in [
            ("2.3.19.1 (9b53102964)\n", Some(Version::V2_3)),
            ("2.4.1-4 (7d8c0e5759)\n", Some(Version::V2_4)),
            ("2.5.0\n", Some(Version::V2_4)),
            ("3.0.0\n", Some(Version::V2_4)),
            ("2.2.36 (1f10bfa63)\n", None),
            ("1.2.15\n", None),
            ("Unknown option\n", None),
            ("", None),
        ] {
            assert_eq!(Version::parse(said), version, "{said:?}");
        }
    }
}
