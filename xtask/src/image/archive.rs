//! An image in one file that is a docker-archive and an OCI layout at once:
//! `ctr images import`, `docker load`, `podman load` and `skopeo` take it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};
use tar::{Builder, EntryType};

use super::Arch;
use super::rootfs::{Rootfs, append, header};

const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// An image of one layer.
#[derive(Debug)]
pub(crate) struct Image {
    name: String,
    root: Rootfs,
    arch: Arch,
    entrypoint: Vec<String>,
    path: Option<String>,
    labels: BTreeMap<String, String>,
    time: u64,
}

impl Image {
    /// An image of this machine's architecture.
    pub(crate) fn new(name: &str, root: Rootfs) -> Self {
        Self {
            name: name.to_owned(),
            root,
            arch: Arch::of_this_machine(),
            entrypoint: Vec::new(),
            path: None,
            labels: BTreeMap::new(),
            time: 0,
        }
    }

    /// Name and tag.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Of another architecture.
    pub(crate) fn arch(mut self, arch: Arch) -> Self {
        self.arch = arch;
        self
    }

    /// What a container runs.
    pub(crate) fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Its PATH.
    pub(crate) fn path(mut self, path: &str) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// A label.
    pub(crate) fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The time of everything in it, in seconds since 1970.
    pub(crate) fn time(mut self, time: u64) -> Self {
        self.time = time;
        self
    }

    /// Writes the archive, whole or not at all.
    pub(crate) fn write(&self, to: &Path) -> Result<()> {
        let unfinished = to.with_extension("unfinished");
        fs::write(&unfinished, self.bytes()?).with_context(|| unfinished.display().to_string())?;
        fs::rename(&unfinished, to).with_context(|| to.display().to_string())
    }

    /// The archive's bytes, the same for the same image.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        let layer = Blob::new(LAYER_TYPE, self.root.layer(self.time)?);
        let config = Blob::json(CONFIG_TYPE, &self.config(&layer))?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
            "config": config.descriptor(), "layers": [layer.descriptor()],
        });
        let manifest = Blob::json(MANIFEST_TYPE, &manifest)?;
        let mut listed = manifest.descriptor();
        // containerd takes the name from the first, others the tag from the second.
        listed["annotations"] = json!({
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": self.name.rsplit(':').next().unwrap_or_default(),
        });
        listed["platform"] = json!({"architecture": self.arch.oci(), "os": "linux"});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [listed]});
        let docker = json!([{"Config": config.place(), "RepoTags": [self.name], "Layers": [layer.place()]}]);
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        files.insert("index.json".into(), serde_json::to_vec(&index)?);
        files.insert("manifest.json".into(), serde_json::to_vec(&docker)?);
        files.insert("oci-layout".into(), serde_json::to_vec(&json!({"imageLayoutVersion": "1.0.0"}))?);
        for blob in [layer, config, manifest] {
            files.insert(blob.place(), blob.bytes);
        }
        pack(&files, self.time)
    }

    fn config(&self, layer: &Blob) -> Value {
        let created = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(self.time)).to_string();
        let environment: Vec<String> = self.path.iter().map(|path| format!("PATH={path}")).collect();
        json!({
            "architecture": self.arch.oci(), "os": "linux", "created": created,
            "config": {"Entrypoint": self.entrypoint, "Env": environment, "Labels": self.labels},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest()]},
            "history": [{"created": created, "created_by": "cargo xtask image"}],
        })
    }
}

fn pack(files: &BTreeMap<String, Vec<u8>>, time: u64) -> Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    for directory in ["blobs/", "blobs/sha256/"] {
        append(&mut archive, &mut header(EntryType::Directory, 0o755, time), directory, &[])?;
    }
    for (at, bytes) in files {
        append(&mut archive, &mut header(EntryType::Regular, 0o644, time), at, bytes)?;
    }
    archive.into_inner().context("archive")
}

/// Bytes that are known by their digest.
struct Blob {
    kind: &'static str,
    bytes: Vec<u8>,
    hash: String,
}

impl Blob {
    fn new(kind: &'static str, bytes: Vec<u8>) -> Self {
        let hash = digest(&SHA256, &bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { kind, bytes, hash }
    }

    fn json(kind: &'static str, value: &Value) -> Result<Self> {
        Ok(Self::new(kind, serde_json::to_vec(value)?))
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.hash)
    }

    fn place(&self) -> String {
        format!("blobs/sha256/{}", self.hash)
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.kind, "digest": self.digest(), "size": self.bytes.len()})
    }
}

/// The name that an archive gives its image; docker's or ours.
pub(crate) fn name_in(archive: &Path) -> Result<String> {
    let file = File::open(archive).with_context(|| archive.display().to_string())?;
    let found = name_of(file).with_context(|| archive.display().to_string())?;
    found.with_context(|| format!("{}: no manifest.json that names an image", archive.display()))
}

fn name_of(archive: impl Read) -> Result<Option<String>> {
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        if entry.path()?.as_os_str() == "manifest.json" {
            let mut text = String::new();
            entry.read_to_string(&mut text)?;
            let manifest: Value = serde_json::from_str(&text)?;
            return Ok(manifest[0]["RepoTags"][0].as_str().map(str::to_owned));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        let mut root = Rootfs::default();
        root.text("hello", "world");
        Image::new("warren.local/test:7", root).entrypoint(&["/hello"]).label("a", "b")
    }

    fn files(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (entry.path().unwrap().display().to_string(), bytes)
        });
        entries.collect()
    }

    #[test]
    fn the_same_image_is_the_same_bytes_and_another_time_is_not() {
        assert_eq!(image().bytes().unwrap(), image().bytes().unwrap());
        assert_ne!(image().bytes().unwrap(), image().time(1).bytes().unwrap());
    }

    #[test]
    fn both_forms_lead_to_the_same_config_and_layer_by_their_digests() {
        let files = files(&image().bytes().unwrap());
        let read = |at: &str| -> Value { serde_json::from_slice(&files[at]).unwrap() };
        let place = |descriptor: &Value| {
            let at = descriptor["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
            assert_eq!(Blob::new("", files[&at].clone()).place(), at);
            assert_eq!(descriptor["size"], files[&at].len());
            at
        };
        let manifest = read(&place(&read("index.json")["manifests"][0]));
        let docker = &read("manifest.json")[0];
        assert_eq!(docker["Config"], place(&manifest["config"]));
        assert_eq!(docker["Layers"][0], place(&manifest["layers"][0]));
        let config = read(&place(&manifest["config"]));
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        assert_eq!(
            (&config["config"]["Entrypoint"][0], &config["config"]["Labels"]["a"]),
            (&json!("/hello"), &json!("b"))
        );
        assert_eq!(config["created"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn an_archive_tells_its_images_name() {
        assert_eq!(name_of(image().bytes().unwrap().as_slice()).unwrap().as_deref(), Some("warren.local/test:7"));
        assert_eq!(name_of(Rootfs::default().layer(0).unwrap().as_slice()).unwrap(), None);
    }
}
