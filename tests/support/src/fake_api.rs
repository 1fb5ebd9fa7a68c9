//! A named fake: an API server without TLS that lists a fixed set of objects, until it is told to misbehave. The real
//! one cannot be made to answer nonsense.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::netns::NetNs;

/// How it behaves to requests that come from now on; connections that wait for changes are cut when it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As it should.
    Sound,
    /// It takes requests and says nothing.
    Silent,
    /// 200, and a page in HTML.
    Html,
    /// 200, and an object that is no list.
    Empty,
    /// 200, a list, and it ends half-way.
    Torn,
    /// 401.
    Unauthorized,
    /// 500.
    Broken,
}

/// Where it serves unless told otherwise.
const HERE: &str = "127.0.0.1:8001";

/// The fake. Its threads end with the test.
#[derive(Debug, Clone)]
pub struct FakeApi(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    manner: Manner,
    /// By the last part of the path.
    objects: Vec<(String, String, Value)>,
    waiting: Vec<TcpStream>,
}

impl FakeApi {
    /// Serves at 127.0.0.1:8001 of a namespace. Objects are given with plural and kind.
    #[track_caller]
    pub fn start(netns: &NetNs, objects: &[(&str, &str, Value)]) -> Self {
        Self::start_at(netns, HERE, objects)
    }

    /// The same at another address.
    #[track_caller]
    pub fn start_at(netns: &NetNs, address: &str, objects: &[(&str, &str, Value)]) -> Self {
        let listener = netns.run(|| TcpListener::bind(address).expect("free port"));
        let owned =
            objects.iter().map(|(plural, kind, object)| ((*plural).to_owned(), (*kind).to_owned(), object.clone()));
        let state = State { manner: Manner::Sound, objects: owned.collect(), waiting: Vec::new() };
        let this = Self(Arc::new(Mutex::new(state)));
        let served = this.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let fake = served.clone();
                std::thread::spawn(move || fake.serve(stream));
            }
        });
        this
    }

    /// A kubeconfig that leads to it.
    pub fn kubeconfig() -> String {
        Self::kubeconfig_for(HERE)
    }

    /// A kubeconfig that leads to one at another address.
    pub fn kubeconfig_for(address: &str) -> String {
        json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]})
        .to_string()
    }

    /// Changes its manner, and cuts everybody off.
    pub fn become_(&self, manner: Manner) {
        let mut state = self.0.lock().expect("no panic");
        state.manner = manner;
        for stream in state.waiting.drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().expect("socket"));
        loop {
            let mut first = String::new();
            if reader.read_line(&mut first).unwrap_or(0) == 0 {
                return;
            }
            let mut header = String::new();
            while reader.read_line(&mut header).is_ok_and(|read| read > 2) {
                header.clear();
            }
            let target = first.split(' ').nth(1).unwrap_or_default().to_owned();
            if !self.answer(&stream, &target) {
                return;
            }
        }
    }

    /// Answers one request; says whether the connection goes on.
    fn answer(&self, mut stream: &TcpStream, target: &str) -> bool {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (manner, items, kind) = {
            let mut state = self.0.lock().expect("no panic");
            if query.contains("watch=true") || state.manner == Manner::Silent {
                state.waiting.push(stream.try_clone().expect("socket"));
            }
            let of_path = state.objects.iter().filter(|(plural, ..)| path.ends_with(&format!("/{plural}")));
            let items: Vec<Value> =
                of_path.clone().map(|(_, _, object)| object.clone()).filter(|o| !o.is_null()).collect();
            let kind = of_path.map(|(_, kind, _)| kind.clone()).next();
            (state.manner, items, kind)
        };
        let body =
            |text: &str, status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        let reply = match manner {
            Manner::Silent => {
                std::thread::sleep(Duration::from_secs(120));
                return false;
            }
            Manner::Html => body("<html><body>Welcome!</body></html>", "200 OK"),
            Manner::Empty => body("{}", "200 OK"),
            Manner::Unauthorized => body("{}", "401 Unauthorized"),
            Manner::Broken => body("{}", "500 Internal Server Error"),
            Manner::Torn => {
                let torn = r#"{"kind":"PodList","metadata":{"resourceVersion":"9"},"items":["#;
                let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{torn}");
                return false;
            }
            Manner::Sound if query.contains("sendInitialEvents") => body("{}", "400 Bad Request"),
            Manner::Sound if query.contains("watch=true") => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                std::thread::sleep(Duration::from_secs(120));
                return false;
            }
            Manner::Sound if path == "/apis" => body(r#"{"kind":"APIGroupList","groups":[]}"#, "200 OK"),
            Manner::Sound => match kind {
                None => body("404 page not found", "404 Not Found"),
                Some(kind) => body(
                    &json!({"kind": format!("{kind}List"), "metadata": {"resourceVersion": "7"}, "items": items})
                        .to_string(),
                    "200 OK",
                ),
            },
        };
        stream.write_all(reply.as_bytes()).is_ok()
    }
}
