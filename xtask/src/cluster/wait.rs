//! Waiting for what a cluster does by itself, with the time shown.

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::interrupt;

const POLL: Duration = Duration::from_millis(200);
/// How often a wait that writes to no terminal says that it goes on.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Asks until there is nothing missing; what is missing at the end is the error.
pub(crate) fn until(title: &str, limit: Duration, mut missing: impl FnMut() -> Result<Option<String>>) -> Result<()> {
    let started = Instant::now();
    let mut said = started;
    let terminal = io::stderr().is_terminal();
    let clear = if terminal { "\r\x1b[K" } else { "" };
    loop {
        interrupt::check()?;
        let Some(what) = missing()? else {
            eprintln!("{clear}  {title} … done ({:.1} s)", started.elapsed().as_secs_f32());
            return Ok(());
        };
        if started.elapsed() > limit {
            eprintln!("{clear}  {title} … FAILED ({:.1} s)", started.elapsed().as_secs_f32());
            bail!("{title}: after {} s: {what}", limit.as_secs());
        }
        if terminal {
            eprint!("{clear}  {title} … {} s", started.elapsed().as_secs());
            io::stderr().flush().ok();
        } else if said.elapsed() >= HEARTBEAT {
            said = Instant::now();
            eprintln!("  {title} … {} s  {what}", started.elapsed().as_secs());
        }
        thread::sleep(POLL);
    }
}
