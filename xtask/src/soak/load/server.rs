//! A pod's server: does what each connection's opening asks for, and looks at
//! every byte and at who calls.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::super::lab::{PAIRS, PORT, Pair};
use super::super::ledger::Ledger;
use super::flow::{self, Pace};
use super::trouble::Trouble;
use super::wire::{Ending, Job, OPENING, Opening};

const BACKLOG: i32 = 4096;
const AFTER_ERROR: Duration = Duration::from_millis(10);

/// Listens on both families.
pub(super) fn listen() -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_only_v6(false)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)).into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

/// Serves for ever.
pub(super) async fn serve(listener: TcpListener, own: usize, ledger: Arc<Ledger>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let ledger = Arc::clone(&ledger);
                tokio::spawn(async move { Served { own, peer, start: Instant::now() }.run(stream, &ledger).await });
            }
            // Out of descriptors for a moment, or a connection that was reset before it was taken.
            Err(_) => tokio::time::sleep(AFTER_ERROR).await,
        }
    }
}

struct Served {
    own: usize,
    peer: SocketAddr,
    start: Instant,
}

impl Served {
    async fn run(self, mut stream: TcpStream, ledger: &Ledger) {
        let mut first = [0; OPENING];
        // A client may give up before it says a word.
        if stream.set_nodelay(true).is_err() || stream.read_exact(&mut first).await.is_err() {
            return;
        }
        let unknown = Pair { from: self.own, to: self.own };
        let opening = match Opening::decode(&first) {
            Ok(opening) => opening,
            Err(trouble) => return self.tell(trouble, unknown, ledger),
        };
        let pair = Pair { from: usize::from(opening.from), to: self.own };
        if !PAIRS.contains(&pair) {
            return self.tell(Trouble::Wrong("an opening of somebody who does not call it".into()), unknown, ledger);
        }
        if !pair.client().addresses().contains(&self.peer.ip().to_canonical()) {
            self.tell(Trouble::Wrong(format!("a connection from {}", self.peer)), pair, ledger);
        }
        let done = match opening.job {
            Job::Echo { size, ending } => echo(stream, opening, size as usize, ending, ledger).await,
            Job::Stream { kib, rate, afterwards } => {
                both_ways(stream, opening, u64::from(kib) * 1024, Pace::of(rate), afterwards, ledger).await
            }
        };
        if let Err(trouble) = done {
            self.tell(trouble, pair, ledger);
        }
    }

    /// Resets are the client's to judge.
    fn tell(&self, trouble: Trouble, pair: Pair, ledger: &Ledger) {
        match trouble {
            Trouble::Broken(_) => {}
            Trouble::Early => ledger.server_saw(pair, self.start, "a clean end too early", true),
            Trouble::Wrong(words) => ledger.server_saw(pair, self.start, &words, false),
        }
    }
}

async fn echo(
    mut stream: TcpStream,
    opening: Opening,
    size: usize,
    ending: Ending,
    ledger: &Ledger,
) -> Result<(), Trouble> {
    let (mut up, mut down) = (opening.upward(), opening.downward());
    while flow::receive(&mut stream, &mut up, size, ledger).await? {
        flow::send(&mut stream, &mut down, size).await?;
        match ending {
            Ending::Client => {}
            Ending::ServerCloses => return Ok(()),
            Ending::ServerResets => {
                // The client has the answer once it says another word: nothing of it is lost by the reset.
                flow::receive(&mut stream, &mut up, 1, ledger).await?;
                return flow::reset(stream);
            }
        }
    }
    Ok(())
}

async fn both_ways(
    mut stream: TcpStream,
    opening: Opening,
    length: u64,
    pace: Pace,
    afterwards: bool,
    ledger: &Ledger,
) -> Result<(), Trouble> {
    let (mut read, mut write) = stream.split();
    let receive = flow::receive_stream(&mut read, opening.upward(), Pace::Unbound, ledger);
    let send = flow::send_stream(&mut write, opening.downward(), length, pace, || false);
    if afterwards {
        receive.await?;
        send.await
    } else {
        tokio::try_join!(receive, send).map(drop)
    }
}
