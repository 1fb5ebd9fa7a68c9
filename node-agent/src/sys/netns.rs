//! Network namespaces: known by an open file, so that a path that is reused is never taken for the one it was.

use std::cell::{Cell, OnceCell};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Socket, Type};

use super::socket;

/// An open network namespace.
#[derive(Debug)]
pub(crate) struct NetNs {
    file: File,
    cookie: u64,
    path: PathBuf,
}

impl NetNs {
    /// Opens the namespace at `path` and reads its cookie.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut namespace = Self { file: File::open(path)?, cookie: 0, path: path.to_owned() };
        namespace.cookie = namespace.enter(current_cookie)??;
        Ok(namespace)
    }

    /// A namespace that nobody else knows, with its `lo` up; it goes when it is dropped.
    pub(crate) fn scratch() -> io::Result<Self> {
        // A thread of its own: one that cannot come back would stay where it is.
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let probe = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
            socket::set_up(probe.as_fd(), c"lo")?;
            Self::open(Path::new("/proc/thread-self/ns/net"))
        });
        made.join().map_err(|_| io::Error::other("the thread that makes a network namespace panicked"))?
    }

    /// The number the kernel gives this namespace and no other, ever.
    pub(crate) fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Where it was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` with this thread inside the namespace.
    ///
    /// A thread that cannot come back would run everything after it in the wrong namespace: the process is aborted.
    pub(crate) fn enter<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let home = HOME.with(|home| match home.get() {
            Some(home) => Ok(home.clone()),
            None => File::open("/proc/thread-self/ns/net").map(|file| home.get_or_init(|| Rc::new(file)).clone()),
        })?;
        // From within another namespace the way leads back there, not home.
        let back = match INSIDE.get() {
            0 => home,
            _ => Rc::new(File::open("/proc/thread-self/ns/net")?),
        };
        setns(&self.file, CloneFlags::CLONE_NEWNET)?;
        INSIDE.set(INSIDE.get() + 1);
        let _guard = Back(back);
        Ok(work())
    }
}

thread_local! {
    /// The namespace that the thread was in when it first entered another one: opened once, not for each socket.
    static HOME: OnceCell<Rc<File>> = const { OnceCell::new() };
    /// How deep in others' namespaces the thread is.
    static INSIDE: Cell<u32> = const { Cell::new(0) };
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Leads the thread back when dropped, also when `work` panics.
struct Back(Rc<File>);

impl Drop for Back {
    fn drop(&mut self) {
        INSIDE.set(INSIDE.get() - 1);
        if let Err(error) = setns(self.0.as_ref(), CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, "cannot return to the agent's network namespace");
            std::process::abort();
        }
    }
}

/// Cookie of the namespace this thread is in.
pub(crate) fn current_cookie() -> io::Result<u64> {
    let probe = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket::netns_cookie(probe.as_fd())
}
