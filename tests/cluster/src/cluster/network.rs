//! A network without a way out, in which all of a cluster is, and who speaks with it.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::Ipv4Addr,
    process::{Command, Stdio},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The bridge to which all nodes are connected.
pub(crate) const BRIDGE: &str = "kube0";
/// Of the control plane, of a mail server beside the cluster, and of devices.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 1);
/// Of all pods.
pub(crate) const PODS: &str = "10.244.0.0/16";

/// The address of a node, the first of which is number 1.
pub(crate) fn node_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 89, 0, number.saturating_add(10))
}

/// The network of a node's pods.
pub(crate) fn node_pods(number: u8) -> String {
    format!("10.244.{number}.0/24")
}

/// Runs `work` on a runtime of its own, all of whose threads and child processes are in a new network: it has loopback, nothing leads out
/// of it, and it goes with the last of them.
///
/// # Errors
/// When the system permits no new network: it takes root.
pub fn in_private_network<T, F>(work: impl FnOnce() -> F + Send + 'static) -> io::Result<T>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    // A thread of its own, since who enters a network stays in it.
    let thread = thread::spawn(move || {
        enter()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        Ok(runtime.block_on(work()))
    });
    match thread.join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Moves this thread into a network that nobody else is in.
fn enter() -> io::Result<()> {
    // No other way makes one without unsafe code: a process does, tells that it is there, and waits.
    let mut maker = Command::new("unshare")
        .args(["--net", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = [0];
    let told = match (maker.stdin.as_mut(), maker.stdout.as_mut()) {
        (Some(stdin), Some(stdout)) => stdin
            .write_all(b"?")
            .and_then(|()| stdout.read_exact(&mut said)),
        _ => Err(io::ErrorKind::BrokenPipe.into()),
    };
    let entered = told
        .and_then(|()| File::open(format!("/proc/{}/ns/net", maker.id())))
        .and_then(|network| {
            use std::os::fd::AsFd as _;
            let kind = Some(LinkNameSpaceType::Network);
            Ok(move_into_link_name_space(network.as_fd(), kind)?)
        });
    drop(maker.stdin.take());
    maker.wait()?;
    entered.map_err(|error| {
        io::Error::new(
            error.kind(),
            format!(
                "cannot make a network of its own, which takes root with CAP_SYS_ADMIN: {error}"
            ),
        )
    })?;
    ip("link set lo up")
}

/// Makes the bridge, with the way to the pods of this many nodes.
pub(crate) fn make_bridge(nodes: u8) -> io::Result<()> {
    ip(&format!("link add {BRIDGE} type bridge"))?;
    ip(&format!("address add {GATEWAY}/24 dev {BRIDGE}"))?;
    ip(&format!("link set {BRIDGE} up"))?;
    for number in 1..=nodes {
        let (pods, address) = (node_pods(number), node_address(number));
        ip(&format!("route add {pods} via {address}"))?;
    }
    Ok(())
}

/// `ip`, with these words.
pub(crate) fn ip(words: &str) -> io::Result<()> {
    let done = Command::new("ip").args(words.split(' ')).output()?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(io::Error::other(format!("ip {words}: {}", said.trim())))
}
