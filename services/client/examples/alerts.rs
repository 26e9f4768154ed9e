//! Prints a line for each new message: `MAILBELL_TOKEN=... cargo run --example alerts -- https://push.example.org [authority.pem]`
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "printing is what it is for"
)]

use mailbell_client::{AppEvent, Client, FileState, proto::Message};

fn show(folder: &str, message: Option<&Message>) {
    let from = message.and_then(|message| message.from.first());
    let from = from.map_or("somebody", |from| match from.name.as_str() {
        "" => &from.address,
        name => name,
    });
    let subject = message.map_or("", |message| &message.subject);
    println!("{folder}: {from}: {subject}");
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let endpoint = arguments.next().ok_or("which gateway?")?;
    let mut client = Client::builder(endpoint)
        .token(std::env::var("MAILBELL_TOKEN")?)
        // What arrives while this is not running is told at the next start.
        .state(FileState::open("alerts.state")?);
    if let Some(path) = arguments.next() {
        client = client.tls(std::fs::read(path)?);
    }
    let mut events = client.build()?.into_stream();
    while let Some(event) = events.recv().await {
        match event? {
            AppEvent::Arrived(arrived) if arrived.alert => {
                show(&arrived.folder_name, arrived.message.as_ref());
            }
            AppEvent::ReplaceFolder(folder) => {
                let new = folder.alert_for();
                new.for_each(|message| show(&folder.folder_name, Some(message)));
            }
            AppEvent::Disconnected { reason, retry_in } => {
                eprintln!("{reason}; again in {:.1} s", retry_in.as_secs_f32());
            }
            _ => {}
        }
    }
    Ok(())
}
