//! Puts a static binary into an OCI image archive, without a registry, an engine or a base image. What goes in decides each byte of
//! what comes out: the same binary and commit make the same digest.
//!
//! The image has the binary, the root certificates that Mozilla trusts, and a user without rights; no shell, no libraries, no
//! package manager.

mod archive;
mod files;

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use jiff::Timestamp;

use crate::archive::{Image, Source};

const MAILBELL: &str = "mailbell";
/// What its image says of itself.
const OF_MAILBELL: [(&str, &str); 4] = [
    ("title", "Mailbell"),
    ("description", "Push e-mail for ordinary IMAP mailboxes"),
    ("licenses", "Apache-2.0"),
    ("url", "https://mailbell.dev"),
];

/// Put a static binary into an OCI image archive
#[derive(Debug, Parser)]
struct Args {
    /// The binary; it must need no library
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,
    /// What it is called in the image, in /usr/bin
    #[arg(long, value_name = "NAME", default_value = MAILBELL)]
    program: String,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Write an archive that `ctr images import`, `podman load` and the like take
    Archive {
        /// Where it goes
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
        /// Name that the image has once it is imported
        #[arg(long, value_name = "NAME:TAG")]
        name: String,
        /// The commit from which the binary was built
        #[arg(long, value_name = "COMMIT")]
        revision: String,
        /// When that commit was made, in seconds since the epoch
        #[arg(long, value_name = "SECONDS")]
        created: i64,
    },
    /// Write its files only, for another builder of images
    Files {
        /// Into this directory, which is made
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let cannot = |what: &str, path: &Path| format!("cannot {what} {}", path.display());
    let binary = fs::read(&args.binary).with_context(|| cannot("read", &args.binary))?;
    let program = args.program.as_str();
    match args.what {
        What::Archive {
            output,
            name,
            revision,
            created,
        } => {
            let mut labels = vec![("revision", revision.as_str()), ("title", program)];
            if program == MAILBELL {
                labels.extend(OF_MAILBELL);
            }
            let image = Image::new(&Source {
                binary: &binary,
                program,
                name: &name,
                labels: &labels,
                created: Timestamp::from_second(created)?,
            })?;
            fs::write(&output, &image.archive).with_context(|| cannot("write", &output))?;
            writeln!(
                io::stdout(),
                "{}\n  {name}\n  {}\n  {:.1} MB to pull, {:.1} MB unpacked",
                output.display(),
                image.digest,
                megabytes(image.archive.len()),
                megabytes(image.unpacked),
            )?;
        }
        What::Files { output } => {
            let layer = files::layer(program, &binary)?;
            let unpacked = tar::Archive::new(&layer[..]).unpack(&output);
            unpacked.with_context(|| cannot("write", &output))?;
        }
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}
