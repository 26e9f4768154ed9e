//! Writes `src/generated` from the `.proto` files, with a compiler in pure Rust: `make proto`.
//!
//! With `--check` it changes nothing and exits 1 if the committed code differs.

use protox::prost::Message;
use std::{env, fs, path::Path, process::ExitCode};

const FILES: [&str; 3] = [
    "mailbell/push/v1/push.proto",
    "mailbell/admin/v1/admin.proto",
    "mailbell/bus/v1/bus.proto",
];

/// Who needs the messages alone gets no transport with them.
const SERVICES: &str = "#[cfg(feature = \"services\")]";

/// Messages with a secret in them: `src/secrets.rs` shows the rest of them.
const SECRETS: [&str; 4] = [
    ".mailbell.admin.v1.CreateAccountRequest",
    ".mailbell.admin.v1.UpdateAccountRequest",
    ".mailbell.admin.v1.MintTokenResponse",
    ".mailbell.push.v1.Reauthenticate",
];

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let check = env::args().any(|arg| arg == "--check");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("src/generated");
    let fresh = env::temp_dir().join(format!("mailbell-proto-{}", std::process::id()));
    fs::create_dir_all(&fresh)?;

    let descriptors = protox::compile(FILES, [root])?;
    fs::write(fresh.join("descriptors.bin"), prost_bytes(&descriptors))?;
    tonic_prost_build::configure()
        .bytes(".")
        .skip_debug(SECRETS)
        // Its `connect(address)` would clash with the call of that name.
        .build_transport(false)
        .client_mod_attribute(".", SERVICES)
        .server_mod_attribute(".", SERVICES)
        .out_dir(&fresh)
        .compile_fds(descriptors)?;

    let mut drift = false;
    for entry in fs::read_dir(&fresh)? {
        let entry = entry?;
        let target = committed.join(entry.file_name());
        let new = fs::read(entry.path())?;
        if fs::read(&target).ok().as_deref() != Some(new.as_slice()) {
            drift = true;
            if !check {
                fs::create_dir_all(&committed)?;
                fs::write(&target, new)?;
            }
        }
    }
    fs::remove_dir_all(&fresh)?;
    Ok(if check && drift {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn prost_bytes(descriptors: &impl Message) -> Vec<u8> {
    descriptors.encode_to_vec()
}
