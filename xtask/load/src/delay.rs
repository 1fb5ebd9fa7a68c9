//! A link that delays packets, for kernels that cannot do it themselves: a TUN
//! interface in each of two network namespaces, and threads that carry packets
//! from one to the other, each as late as it is to be.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// Longer than any packet without offloads.
const PACKET: usize = 65_536;

type Late = (Instant, Vec<u8>);

/// Makes the interfaces, down and without addresses, and carries packets
/// between them from now on.
///
/// # Errors
/// A namespace or an interface that cannot be had.
pub fn link(between: [&Path; 2], name: &str, delay: Duration) -> Result<()> {
    let [a, b] = [interface(between[0], name)?, interface(between[1], name)?];
    carry(a.clone(), b.clone(), delay);
    carry(b, a, delay);
    Ok(())
}

/// Made on a thread that lives in the namespace; the descriptor works everywhere.
fn interface(netns: &Path, name: &str) -> Result<Arc<SyncDevice>> {
    let (file, name) = (File::open(netns).with_context(|| netns.display().to_string())?, name.to_owned());
    let made = thread::spawn(move || -> Result<SyncDevice> {
        setns(file, CloneFlags::CLONE_NEWNET)?;
        Ok(DeviceBuilder::new().name(name).layer(Layer::L3).build_sync()?)
    });
    let device = made.join().map_err(|_| anyhow!("the thread in {} died", netns.display()))?;
    Ok(Arc::new(device.with_context(|| format!("TUN interface in {}", netns.display()))?))
}

fn carry(from: Arc<SyncDevice>, to: Arc<SyncDevice>, delay: Duration) {
    let (late, due) = channel();
    thread::spawn(move || take(&from, &late, delay));
    thread::spawn(move || give(&to, &due));
}

fn take(from: &SyncDevice, late: &Sender<Late>, delay: Duration) -> io::Result<()> {
    let mut packet = vec![0; PACKET];
    loop {
        match from.recv(&mut packet) {
            Ok(length) => {
                if late.send((Instant::now() + delay, packet[..length].to_vec())).is_err() {
                    return Ok(());
                }
            }
            // Until it is set up.
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn give(to: &SyncDevice, due: &Receiver<Late>) {
    while let Ok((when, packet)) = due.recv() {
        thread::sleep(when.saturating_duration_since(Instant::now()));
        // A packet that an interface does not take is lost, as on any link.
        let _ = to.send(&packet);
    }
}
