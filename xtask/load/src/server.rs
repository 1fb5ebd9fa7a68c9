//! The server: does what each connection's opening asks for, in one thread.

mod connection;

use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};

use self::connection::{Connection, Fate};
use crate::Fault;
use crate::net;
use crate::report::Served;

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
const EVENTS: usize = 1024;
const BUFFER: usize = 256 * 1024;
/// Faults that are told; further ones are likely the same.
const TOLD: usize = 20;

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    poll: Poll,
    listener: TcpListener,
    stop: Arc<AtomicBool>,
    /// Kept here as well: one that is closed right after waking may wake nobody.
    waker: Arc<Waker>,
    open: Vec<Option<Connection>>,
    free: Vec<usize>,
    again: Vec<usize>,
    served: Served,
}

/// Ends a server from another thread.
#[derive(Debug)]
pub struct Stopper {
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
}

impl Stopper {
    /// Ends it; what is open is closed.
    ///
    /// # Errors
    /// The server cannot be woken.
    pub fn stop(&self) -> io::Result<()> {
        self.stop.store(true, Ordering::Release);
        self.waker.wake()
    }

    /// Ends it when standard input ends, as it does when its parent dies.
    pub fn stop_at_end_of_input(self) {
        thread::spawn(move || {
            let mut ignored = [0; 64];
            while matches!(io::stdin().read(&mut ignored), Ok(1..)) {}
            self.stop()
        });
    }
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = net::listen(address)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        Ok(Self {
            poll,
            listener,
            stop: Arc::default(),
            waker,
            open: Vec::new(),
            free: Vec::new(),
            again: Vec::new(),
            served: Served::default(),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system call's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// What ends it.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper { stop: self.stop.clone(), waker: self.waker.clone() }
    }

    /// Serves until stopped.
    ///
    /// # Errors
    /// The event loop's; what is wrong with a connection is counted instead.
    pub fn run(mut self) -> io::Result<Served> {
        let mut events = Events::with_capacity(EVENTS);
        let mut buffer = vec![0; BUFFER];
        while !self.stop.load(Ordering::Acquire) {
            let patience = if self.again.is_empty() { None } else { Some(Duration::ZERO) };
            match self.poll.poll(&mut events, patience) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            for slot in std::mem::take(&mut self.again) {
                self.serve(slot, false, &mut buffer);
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(&mut buffer)?,
                    WAKER => {}
                    Token(slot) => self.serve(slot, event.is_read_closed(), &mut buffer),
                }
            }
        }
        Ok(self.served)
    }

    fn accept(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            stream.set_nodelay(true)?;
            let slot = self.free.pop().unwrap_or_else(|| {
                self.open.push(None);
                self.open.len() - 1
            });
            self.poll.registry().register(&mut stream, Token(slot), Interest::READABLE | Interest::WRITABLE)?;
            self.open[slot] = Some(Connection::new(stream));
            self.served.connections += 1;
            self.served.most_open = self.served.most_open.max((self.open.len() - self.free.len()) as u64);
            // The first bytes are often there already.
            self.serve(slot, false, buffer);
        }
    }

    fn serve(&mut self, slot: usize, to_end: bool, buffer: &mut [u8]) {
        let Some(Some(connection)) = self.open.get_mut(slot) else { return };
        let before = connection.received();
        let fate = connection.ready(buffer, to_end);
        self.served.bytes += connection.received() - before;
        match fate {
            Ok(Fate::Open) => return,
            Ok(Fate::Again) => return self.again.push(slot),
            Ok(Fate::Done) => {}
            Err(fault) => self.note(&fault),
        }
        self.open[slot] = None;
        self.free.push(slot);
    }

    fn note(&mut self, fault: &Fault) {
        if fault.is_disconnect() {
            self.served.broken += 1;
        } else if self.served.errors.len() < TOLD {
            self.served.errors.push(fault.to_string());
        }
    }
}
