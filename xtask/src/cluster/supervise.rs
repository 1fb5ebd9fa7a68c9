//! Process number 1 of a member: starts its programs in order, starts again
//! what ends, and takes in what loses its parent.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, wait, waitpid};
use nix::unistd::Pid;

use super::units::{Kind, Unit};
use crate::process;

/// A program that fails at once is not started at once again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a program may take until its socket answers.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// Runs until the member is killed. A start that fails ends the member, with
/// the reason in its log.
pub(crate) fn run(units: &[Unit], logs: &Path) -> Result<()> {
    let mut daemons = BTreeMap::new();
    for unit in units {
        let pid = start(unit, logs)?;
        match &unit.kind {
            Kind::Daemon { answers_at } => {
                if let Some(socket) = answers_at {
                    wait_for(socket, pid).with_context(|| unit.name.clone())?;
                }
                daemons.insert(pid, unit);
            }
            Kind::Once => match waitpid(pid, None).with_context(|| unit.name.clone())? {
                WaitStatus::Exited(_, 0) => {}
                ended => bail!("{} ended with {ended:?}; see its log", unit.name),
            },
        }
    }
    loop {
        let ended = match wait() {
            Ok(status) => status,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("wait"),
        };
        if let Some(unit) = ended.pid().and_then(|pid| daemons.remove(&pid)) {
            println!("{} ended with {ended:?} and is started again", unit.name);
            thread::sleep(PAUSE);
            daemons.insert(start(unit, logs)?, unit);
        }
    }
}

/// The handle is let go: whoever ends is waited for by number.
fn start(unit: &Unit, logs: &Path) -> Result<Pid> {
    let (program, arguments) = unit.command.split_first().with_context(|| format!("{} has no program", unit.name))?;
    let path = logs.join(format!("{}.log", unit.name));
    let log = File::options().create(true).append(true).open(&path).with_context(|| path.display().to_string())?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root");
    let child = command.spawn().with_context(|| process::shown(&command))?;
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

fn wait_for(socket: &Path, pid: Pid) -> Result<()> {
    let started = Instant::now();
    while UnixStream::connect(socket).is_err() {
        if waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG))? != WaitStatus::StillAlive {
            bail!("ended before {} answered; see its log", socket.display());
        }
        if started.elapsed() > PATIENCE {
            bail!("{} does not answer", socket.display());
        }
        thread::sleep(POLL);
    }
    Ok(())
}
