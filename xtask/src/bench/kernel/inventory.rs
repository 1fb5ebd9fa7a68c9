//! The agents' programs and maps, as bpftool lists them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value as Json;

use super::super::lab::net::NODES;
use super::super::rows::Rows;
use crate::process;

/// Where agents pin their maps.
const PINS: &str = "/sys/fs/bpf/warren/";
/// Bytes of an instruction.
const INSTRUCTION: f64 = 8.0;

/// A program of one of the agents.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Program {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) kind: String,
    /// Which node's.
    pub(super) node: usize,
    pub(super) run_time: u64,
    pub(super) runs: u64,
    translated: u64,
    jitted: u64,
    verified: Option<u64>,
}

/// A map that is pinned.
#[derive(Debug, Clone, PartialEq)]
struct Map {
    id: u64,
    name: String,
    node: usize,
    /// Cookie of the pod's namespace, unless it is the node's.
    pod: Option<u64>,
    bytes: u64,
}

/// Everything of both nodes.
#[derive(Debug)]
pub(super) struct Inventory {
    pub(super) programs: Vec<Program>,
    maps: Vec<Map>,
}

impl Inventory {
    /// Lists it. The agents' processes tell what bpftool does not.
    pub(super) fn take(agents: &[u32]) -> Result<Self> {
        let verified = agents.iter().flat_map(|pid| verified_by(*pid)).collect();
        let maps: Vec<Map> = list(&["-f", "map"])?.iter().flat_map(pinned).collect();
        let programs = list(&["prog"])?;
        let programs: Vec<Program> = programs.iter().filter_map(|object| program(object, &maps, &verified)).collect();
        if programs.is_empty() {
            bail!("no program of the agents is loaded");
        }
        Ok(Self { programs, maps })
    }

    /// How large programs and maps are; those of the first node, and of one of its pods.
    pub(super) fn sizes(&self, rows: &mut Rows) {
        let mut put = |row: String, title: String, unit, value| rows.add((&row, &title), "warren", unit, 0, value);
        let mut seen = Vec::new();
        for program in self.programs.iter().filter(|program| program.node == 0) {
            let name = program.short();
            if seen.contains(&name) {
                continue;
            }
            seen.push(name);
            let sizes = [
                ("instructions", "instructions", Some(program.translated as f64 / INSTRUCTION)),
                ("verified", "instructions", program.verified.map(|count| count as f64)),
                ("jitted", "bytes", Some(program.jitted as f64)),
            ];
            for (what, unit, value) in sizes {
                if let Some(value) = value {
                    put(format!("kernel.size.{name}.{what}"), format!("{name}: {what}"), unit, value);
                }
            }
        }
        let pod = self.maps.iter().find_map(|map| map.pod.filter(|_| map.node == 0));
        for (whose, pod) in [("pod", pod), ("node", None)] {
            let maps: Vec<&Map> = self.maps.iter().filter(|map| map.node == 0 && map.pod == pod).collect();
            for map in &maps {
                let (row, title) = (format!("kernel.size.{whose}.{}", map.name), format!("{whose}'s map {}", map.name));
                put(row, title, "bytes", map.bytes as f64);
            }
            let sum = maps.iter().map(|map| map.bytes as f64).sum();
            put(format!("kernel.size.{whose}.maps"), format!("all maps of a {whose}"), "bytes", sum);
        }
    }
}

impl Program {
    /// The name without what all have in common.
    pub(super) fn short(&self) -> &str {
        self.name.strip_prefix("warren_").unwrap_or(&self.name)
    }
}

/// What has run since: time and number, by id.
pub(super) fn counters() -> Result<BTreeMap<u64, (u64, u64)>> {
    let counted = |object: &Json| {
        let number = |key: &str| object[key].as_u64().unwrap_or(0);
        Some((object["id"].as_u64()?, (number("run_time_ns"), number("run_cnt"))))
    };
    Ok(list(&["prog"])?.iter().filter_map(counted).collect())
}

/// What bpftool lists. It fails when a program goes while it looks; another look will do.
fn list(what: &[&str]) -> Result<Vec<Json>> {
    const LOOKS: usize = 5;
    let mut last = Ok(Vec::new());
    for _ in 0..LOOKS {
        let listed = process::output(process::command("bpftool").arg("-j").args(what).arg("show"));
        last = listed.and_then(|text| serde_json::from_str(&text).context("what bpftool lists"));
        if last.is_ok() {
            break;
        }
    }
    last
}

/// A map at each place where it is pinned.
fn pinned(object: &Json) -> Vec<Map> {
    let paths = object["pinned"].as_array().map_or(&[][..], Vec::as_slice);
    let map = |path: &Json| {
        let mut parts = path.as_str()?.strip_prefix(PINS)?.split('/');
        let (node, _version, group, name) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let (pod, name) = match group {
            "pods" => (Some(name.parse().ok()?), parts.next()?),
            _ => (None, name),
        };
        let node = NODES.iter().position(|known| *known == node)?;
        Some(Map {
            id: object["id"].as_u64()?,
            name: name.to_owned(),
            node,
            pod,
            bytes: object["bytes_memlock"].as_u64()?,
        })
    };
    paths.iter().filter_map(map).collect()
}

/// A program is the agents' if it uses one of their maps.
fn program(object: &Json, maps: &[Map], verified: &BTreeMap<u64, u64>) -> Option<Program> {
    let ids: Vec<u64> = object["map_ids"].as_array()?.iter().filter_map(Json::as_u64).collect();
    let node = maps.iter().find(|map| ids.contains(&map.id))?.node;
    let number = |key: &str| object[key].as_u64().unwrap_or(0);
    let id = object["id"].as_u64()?;
    Some(Program {
        id,
        name: object["name"].as_str()?.to_owned(),
        kind: object["type"].as_str()?.to_owned(),
        node,
        run_time: number("run_time_ns"),
        runs: number("run_cnt"),
        translated: number("bytes_xlated"),
        jitted: number("bytes_jited"),
        verified: verified.get(&id).copied(),
    })
}

/// Instructions that the verifier looked at, by program that a process holds.
fn verified_by(pid: u32) -> BTreeMap<u64, u64> {
    let directory = Path::new("/proc").join(pid.to_string()).join("fdinfo");
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    files.filter_map(|file| verified(&fs::read_to_string(file.path()).ok()?)).collect()
}

fn verified(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    Some((field("prog_id:")?, field("verified_insns:")?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn maps_are_known_by_their_pins() {
        let object = json!({"id": 7, "bytes_memlock": 4096, "pinned": [
            "/sys/fs/bpf/warren/wbench-b/v2/pods/4128/LISTENERS", "/sys/fs/bpf/warren/somebody/v2/maps/PODS", "/sys/fs/bpf/x"
        ]});
        let map = Map { id: 7, name: "LISTENERS".into(), node: 1, pod: Some(4128), bytes: 4096 };
        assert_eq!(pinned(&object), std::slice::from_ref(&map));
        assert_eq!(pinned(&json!({"id": 7})), []);
        let ours = json!({"id": 9, "name": "warren_gate", "type": "sched_cls", "map_ids": [1, 7], "run_cnt": 3});
        let found = program(&ours, &[map], &[(9, 500)].into()).unwrap();
        assert_eq!((found.short(), found.node, found.runs, found.verified), ("gate", 1, 3, Some(500)));
        assert_eq!(program(&ours, &[], &BTreeMap::new()), None);
    }

    #[test]
    fn the_verifiers_count_is_in_the_descriptor() {
        let text = "pos:\t0\nflags:\t02000000\nprog_type:\t3\nprog_jited:\t1\nprog_id:\t175\nverified_insns:\t1612\n";
        assert_eq!(verified(text), Some((175, 1612)));
        assert_eq!(verified("pos:\t0\n"), None);
    }
}
