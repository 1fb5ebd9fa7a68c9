//! SIGINT and SIGTERM as a flag, for chores that must clean up before they end.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::exit;

static RAISED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on the signals set the flag instead of ending the process.
pub(crate) fn arm() -> Result<()> {
    let mut fresh = false;
    let flag = RAISED.get_or_init(|| {
        fresh = true;
        Arc::default()
    });
    if fresh {
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            register(signal, flag).context("signal handler")?;
        }
    }
    Ok(())
}

fn register(signal: i32, flag: &Arc<AtomicBool>) -> io::Result<()> {
    signal_hook::flag::register(signal, Arc::clone(flag)).map(|_| ())
}

/// Whether a signal came.
pub(crate) fn raised() -> bool {
    RAISED.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// An error once a signal came: for `?` at the seams of long work.
pub(crate) fn check() -> Result<()> {
    if raised() { Err(exit::interrupted()) } else { Ok(()) }
}
