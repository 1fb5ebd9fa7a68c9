//! nginx and redis in the lab's pods.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::lab::{HTTP_PORT, PODS, Pod, REDIS_PORT, Server};
use crate::interrupt;
use crate::netlab::process::{Daemon, inside};
use crate::process;

const START_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// Starts every pod's server and waits until each answers its own pod.
pub(super) fn start(directory: &Path, daemons: &mut Vec<Daemon>) -> Result<()> {
    let serving = PODS.into_iter().filter(|pod| pod.server != Server::Nothing);
    for pod in serving.clone() {
        let own = directory.join(pod.name);
        fs::create_dir_all(&own).with_context(|| own.display().to_string())?;
        let mut command = match pod.server {
            Server::Nginx => nginx(pod, &own)?,
            Server::Redis => redis(pod, &own),
            Server::Nothing => continue,
        };
        daemons.push(Daemon::start(pod.name, &own.join("log"), &mut command)?);
    }
    for pod in serving {
        wait_until_it_serves(pod)
            .with_context(|| format!("server of {}; see {}", pod.name, directory.join(pod.name).display()))?;
    }
    Ok(())
}

/// nginx answers with the pod's canary and the address it saw.
fn nginx(pod: Pod, own: &Path) -> Result<std::process::Command> {
    let config = own.join("nginx.conf");
    fs::write(&config, nginx_config(pod, own)).with_context(|| config.display().to_string())?;
    let mut command = inside(&pod.netns(), "nginx");
    command.arg("-p").arg(own).arg("-c").arg(&config).arg("-e").arg(own.join("error.log"));
    Ok(command)
}

fn nginx_config(pod: Pod, own: &Path) -> String {
    let own = own.display();
    let scratch: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("  {kind}_temp_path {own}/{kind};\n"))
        .collect();
    format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {own}/pid;\nevents {{}}\nhttp {{\n{scratch}  \
         log_format lab '$remote_addr \"$request\" $status';\n  access_log {own}/access.log lab;\n  \
         keepalive_requests 1000000;\n  server {{\n    listen 0.0.0.0:{HTTP_PORT};\n    listen [::]:{HTTP_PORT};\n    \
         default_type text/plain;\n    location / {{ return 200 \"{} from={} seen=$remote_addr\\n\"; }}\n  }}\n}}\n",
        pod.canary(),
        pod.name,
    )
}

fn redis(pod: Pod, own: &Path) -> std::process::Command {
    let mut command = inside(&pod.netns(), "redis-server");
    command.args(["--bind", "0.0.0.0", "::", "--protected-mode", "no", "--port", &REDIS_PORT.to_string()]);
    command.args(["--save", "", "--appendonly", "no", "--dir"]).arg(own);
    command
}

fn wait_until_it_serves(pod: Pod) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < START_LIMIT {
        interrupt::check()?;
        let up = match pod.server {
            Server::Redis => process::succeeds(inside(&pod.netns(), "redis-cli").args(["ping"])),
            _ => {
                process::succeeds(inside(&pod.netns(), "curl").args(["-s", &format!("http://127.0.0.1:{HTTP_PORT}/")]))
            }
        };
        if up {
            return Ok(());
        }
        thread::sleep(POLL);
    }
    bail!("does not answer within {} s", START_LIMIT.as_secs())
}
