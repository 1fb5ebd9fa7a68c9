//! Fixtures of this crate's tests: a CA in a directory of its own, identities,
//! TCP pairs, and both ends of HBONE on loopback.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use tokio::net::{TcpListener, TcpStream};
use warren_core::identity::{PodUid, SpiffeId, TrustDomain};
use warren_core::pool::PoolKey;
use warren_core::tunnel::{Baggage, ConnectRequest, TraceParent};

use crate::clock::ManualClock;
use crate::hbone::{Connecting, Dialler, HboneServer, HboneStream, InboundStream, Occasion, Open, Pool, TunnelError};
use crate::identity::embedded::{EmbeddedCa, EmbeddedCaConfig};
use crate::identity::{IdentitySnapshot, PodRef, SvidSource};
use crate::limits::Limits;
use crate::telemetry::{Parties, Telemetry, TelemetryConfig};
use crate::tls;

/// A directory that goes away with the test.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("warren-mesh-test-{}-{next}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn td(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

pub(crate) fn id(sa: &str) -> SpiffeId {
    SpiffeId::new(&td("td"), "ns", sa).unwrap()
}

/// A CA whose time stands still until moved.
pub(crate) struct TestCa {
    pub(crate) ca: Arc<EmbeddedCa>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) dir: Rc<TempDir>,
}

pub(crate) fn ca_in(dir: &Rc<TempDir>, clock: &Arc<ManualClock>, name: &str) -> TestCa {
    let telemetry = Telemetry::with_clock(TelemetryConfig::quiet("node"), clock.clone()).unwrap();
    let path = dir.path().join("ca");
    let config = EmbeddedCaConfig {
        clock: clock.clone(),
        leaf_ttl: Duration::from_secs(3600),
        ..EmbeddedCaConfig::new(path, td(name), "node")
    };
    let ca = Arc::new(EmbeddedCa::open(config, telemetry.clone()).unwrap());
    TestCa { ca, clock: clock.clone(), telemetry, dir: dir.clone() }
}

pub(crate) fn test_ca() -> TestCa {
    ca_of("td")
}

pub(crate) fn ca_of(name: &str) -> TestCa {
    let clock = Arc::new(ManualClock::new(SystemTime::now()));
    ca_in(&Rc::new(TempDir::new()), &clock, name)
}

impl TestCa {
    pub(crate) fn snapshot(&self, id: &SpiffeId) -> Arc<IdentitySnapshot> {
        self.ca.add_pod(&pod_ref(id.as_str()), id).current().unwrap()
    }
}

/// A pod of which only the UID matters.
pub(crate) fn pod_ref(uid: &str) -> PodRef {
    PodRef { uid: PodUid::from(uid), namespace: "default".to_owned(), name: "pod".to_owned() }
}

/// TLS by rustls alone, as another implementation has it: the server's end.
pub(crate) async fn other_server(
    tcp: TcpStream,
    snapshot: &IdentitySnapshot,
) -> tokio_rustls::server::TlsStream<TcpStream> {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls::testing::server_config(snapshot));
    acceptor.accept(tcp).await.unwrap()
}

/// TLS by rustls alone: the client's end.
pub(crate) async fn other_client(
    tcp: TcpStream,
    snapshot: &IdentitySnapshot,
    expected: &[SpiffeId],
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let connector = tokio_rustls::TlsConnector::from(tls::testing::client_config(snapshot, expected));
    let name = std::net::IpAddr::from([0, 0, 0, 0]).into();
    connector.connect(name, tcp).await.unwrap()
}

/// Two ends of one TCP connection on loopback.
pub(crate) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (client, server) = (client.unwrap(), server.unwrap().0);
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    (client, server)
}

/// Runs a test on one worker, as the agent runs its data path.
pub(crate) fn on_worker(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limit = Duration::from_secs(60);
    let local = tokio::task::LocalSet::new();
    let done = local.block_on(&runtime, async { tokio::time::timeout(limit, test).await });
    done.expect("the test hangs");
}

pub(crate) fn connect_request(authority: &str) -> ConnectRequest {
    ConnectRequest {
        authority: authority.parse().unwrap(),
        baggage: Baggage { namespace: Some("ns".into()), ..Baggage::default() },
        forwarded: None,
        traceparent: TraceParent::from_random([7; 24]),
    }
}

/// What a client's pool reaches its server by; shared with the test, which may change it.
pub(crate) struct TestDials {
    /// TCP connections begun.
    pub(crate) count: Cell<usize>,
    /// Those that begin now do not come about before `go`.
    pub(crate) stuck: Cell<bool>,
    pub(crate) go: tokio::sync::Notify,
    /// They are refused.
    pub(crate) refuse: Cell<bool>,
    /// They lead here instead.
    pub(crate) instead: Cell<Option<SocketAddr>>,
    /// What dials ahead go by.
    pub(crate) snapshot: RefCell<Option<Arc<IdentitySnapshot>>>,
}

impl Dialler for Rc<TestDials> {
    fn connect<'a>(&'a self, key: &'a PoolKey) -> Connecting<'a> {
        self.count.set(self.count.get() + 1);
        Box::pin(async move {
            if self.stuck.get() {
                self.go.notified().await;
            }
            if self.refuse.get() {
                return Err(std::io::ErrorKind::ConnectionRefused.into());
            }
            TcpStream::connect(self.instead.get().unwrap_or(key.destination)).await
        })
    }

    fn occasion(&self, key: &PoolKey) -> Option<Occasion> {
        let snapshot = self.snapshot.borrow().clone().filter(|snapshot| *snapshot.svid.id() == key.source)?;
        Some(Occasion { snapshot, parties: Parties::default() })
    }
}

/// A client worker with its pool, and the address of a server.
pub(crate) struct Client {
    pub(crate) pool: Pool,
    pub(crate) dials: Rc<TestDials>,
    pub(crate) snapshot: Arc<IdentitySnapshot>,
    pub(crate) expected: Vec<SpiffeId>,
    pub(crate) server: SocketAddr,
}

impl Client {
    pub(crate) fn new(ca: &TestCa, limits: &Limits, server: SocketAddr) -> Self {
        let snapshot = ca.snapshot(&id("client"));
        let dials = Rc::new(TestDials {
            count: Cell::new(0),
            stuck: Cell::new(false),
            go: tokio::sync::Notify::new(),
            refuse: Cell::new(false),
            instead: Cell::new(None),
            snapshot: RefCell::new(Some(snapshot.clone())),
        });
        Self {
            pool: Pool::new(Arc::new(limits.clone()), ca.telemetry.clone(), dials.clone()),
            dials,
            snapshot,
            expected: vec![id("server")],
            server,
        }
    }

    /// Another SVID, as after a renewal.
    pub(crate) fn renew(&mut self, snapshot: Arc<IdentitySnapshot>) {
        *self.dials.snapshot.borrow_mut() = Some(snapshot.clone());
        self.snapshot = snapshot;
    }

    pub(crate) fn key(&self) -> PoolKey {
        PoolKey {
            source: self.snapshot.svid.id().clone(),
            expected: self.expected.clone(),
            destination: self.server,
            source_ip: "127.0.0.1".parse().unwrap(),
        }
    }

    pub(crate) async fn open(&self, app: &TcpStream) -> Result<HboneStream, TunnelError> {
        let request = connect_request("10.0.0.1:80");
        let open = Open {
            key: self.key(),
            snapshot: self.snapshot.clone(),
            request: &request,
            parties: Parties::default(),
            early_data: true,
        };
        self.pool.open(open, app).await
    }
}

/// Serves HBONE connections as `server`; each stream goes to `handle`. Counts
/// the connections.
pub(crate) async fn serve(
    snapshot: Arc<IdentitySnapshot>,
    limits: Limits,
    handle: impl Fn(InboundStream) + 'static,
) -> (SocketAddr, Rc<std::cell::Cell<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Rc::new(std::cell::Cell::new(0));
    let counter = count.clone();
    let handle = Rc::new(handle);
    tokio::task::spawn_local(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            counter.set(counter.get() + 1);
            let (snapshot, limits, handle) = (snapshot.clone(), limits.clone(), handle.clone());
            tokio::task::spawn_local(async move {
                if let Ok(server) = crate::hbone::accept(tcp, &snapshot, &limits).await {
                    run(server, handle.as_ref()).await;
                }
            });
        }
    });
    (address, count)
}

pub(crate) async fn run(mut server: HboneServer, handle: &impl Fn(InboundStream)) {
    while let Some(Ok(stream)) = server.next().await {
        handle(stream);
    }
}
