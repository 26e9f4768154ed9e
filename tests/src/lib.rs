//! What the end to end tests of Mailbell stand on: a real installation of real processes, mail load, devices behind the
//! client crate, and an auditor that compares what lies in the mailbox with what each device was told.
//!
//! * [`auditor`] decides whether a device got everything once and in order; it knows no I/O;
//! * [`mailbox`] reads the ground truth over IMAP, with none of the code under test;
//! * [`sessions`] decides from what the synthetic mail server saw whether each mailbox was watched, and by one watcher alone;
//! * [`sharing`] is a crowd whose watchers come, go and fail while mail arrives, judged on both sides; [`traffic`] is that mail,
//!   and [`requests`] are what clients ask the owners meanwhile;
//! * [`load`] makes numbered mail; [`device`] runs the client crate and notes what its app sees;
//! * [`installation`] starts, kills and restarts the real binary;
//! * [`world`] is all of this on a real mail server, [`crowd`] with thousands of mailboxes on the synthetic one;
//! * [`clock`] gives a process a wrong one; [`cli`] runs commands as a person types them, and [`watching`] one that goes on; [`leaks`] looks for planted secrets in all that was printed.

pub mod auditor;
pub mod cli;
pub mod clock;
pub mod crowd;
pub mod device;
pub mod http;
pub mod installation;
pub mod journal;
pub mod leaks;
pub mod load;
pub mod logs;
pub mod mailbox;
pub mod process;
pub mod requests;
pub mod sessions;
pub mod sharing;
pub mod traffic;
pub mod watching;
pub mod world;
