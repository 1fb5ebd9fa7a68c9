//! A client that netns tests run inside a pod as another user: it tries to get past the capture in one of the ways
//! an application could, and says on standard output how far it came.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// What the command line asks for.
struct Plan {
    to: SocketAddr,
    say: String,
    device: Option<String>,
    rebind: Option<String>,
    mark: Option<u32>,
    source: Option<SocketAddr>,
    transparent: bool,
}

fn main() {
    let plan = match parse(std::env::args().skip(1)) {
        Ok(plan) => plan,
        Err(reason) => {
            eprintln!(
                "usage: warren-probe ADDR TEXT [device=D] [rebind=D] [mark=N] [source=ADDR] [transparent=1]: {reason}"
            );
            std::process::exit(2);
        }
    };
    match attempt(&plan) {
        Ok(answer) => println!("answered {answer}"),
        Err((step, error)) => println!("failed {step}: {error}"),
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Plan, String> {
    let to = arguments.next().ok_or("no address")?;
    let to = to.parse().map_err(|e| format!("{to}: {e}"))?;
    let say = arguments.next().ok_or("no text")?;
    let mut plan = Plan { to, say, device: None, rebind: None, mark: None, source: None, transparent: false };
    for argument in arguments {
        let (key, value) = argument.split_once('=').ok_or("expected KEY=VALUE")?;
        match key {
            "device" => plan.device = Some(value.to_owned()),
            "rebind" => plan.rebind = Some(value.to_owned()),
            "mark" => plan.mark = Some(value.parse().map_err(|e| format!("{argument}: {e}"))?),
            "source" => plan.source = Some(value.parse().map_err(|e| format!("{argument}: {e}"))?),
            "transparent" => plan.transparent = value == "1",
            _ => return Err(argument),
        }
    }
    Ok(plan)
}

/// Goes through the steps; each that fails ends it, and is named.
fn attempt(plan: &Plan) -> Result<String, (&'static str, io::Error)> {
    let at = |step: &'static str| move |error| (step, error);
    let socket = Socket::new(Domain::for_address(plan.to), Type::STREAM, Some(Protocol::TCP)).map_err(at("socket"))?;
    if let Some(device) = &plan.device {
        socket.bind_device(Some(device.as_bytes())).map_err(at("device"))?;
    }
    if let Some(mark) = plan.mark {
        socket.set_mark(mark).map_err(at("mark"))?;
    }
    if plan.transparent {
        let made =
            if plan.to.is_ipv4() { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) };
        made.map_err(at("transparent"))?;
    }
    if let Some(source) = plan.source {
        socket.bind(&source.into()).map_err(at("source"))?;
    }
    if let Some(device) = &plan.rebind {
        rebind_while_connecting(&socket, plan.to, device)?;
    } else {
        socket.connect_timeout(&plan.to.into(), Duration::from_secs(5)).map_err(at("connect"))?;
    }
    socket.set_read_timeout(Some(Duration::from_secs(5))).map_err(at("time-out"))?;
    let mut stream: std::net::TcpStream = socket.into();
    stream.write_all(plan.say.as_bytes()).map_err(at("write"))?;
    let mut answer = vec![0; plan.say.len()];
    stream.read_exact(&mut answer).map_err(at("read"))?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Binds to a device, and takes the mark away, between the call and the SYN's answer.
fn rebind_while_connecting(socket: &Socket, to: SocketAddr, device: &str) -> Result<(), (&'static str, io::Error)> {
    let at = |step: &'static str| move |error| (step, error);
    socket.set_nonblocking(true).map_err(at("nonblocking"))?;
    let _ = socket.connect(&to.into());
    let rebound = socket.bind_device(Some(device.as_bytes()));
    let unmarked = socket.set_mark(0);
    println!("rebind {rebound:?}, unmark {unmarked:?}");
    socket.set_nonblocking(false).map_err(at("blocking"))?;
    socket.connect_timeout(&to.into(), Duration::from_secs(5)).map_err(at("connect"))
}
