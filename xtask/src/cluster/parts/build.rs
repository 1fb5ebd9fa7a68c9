//! Building a program from a Go module: a module of our own requires it at the
//! pinned version. `go install MODULE@VERSION` would refuse modules whose own
//! go.mod replaces others, as Kubernetes' does.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::go::Go;
use super::list::{List, Program, Source};
use crate::process;
use crate::workspace::Workspace;

/// Builds one program into a folder; it appears there when it is whole.
pub(super) fn program(
    workspace: &Workspace,
    go: &Go,
    list: &List,
    program: &Program,
    cache: &Path,
    bin: &Path,
) -> Result<()> {
    let source = list.source(program)?;
    let module = wrapper(workspace, go, list, source, cache)?;
    let unfinished = bin.join(format!(".{}.unfinished", program.name));
    let variables = source.version_variables.iter().map(|name| format!(" -X {name}={}", source.version));
    let mut command = go.command();
    command.current_dir(&module).arg("build").arg(format!("-ldflags=-s -w{}", variables.collect::<String>()));
    command.arg("-o").arg(&unfinished).arg(&program.package);
    let title = format!("build {} {} (minutes)", program.name, source.version);
    process::step(&title, &workspace.logs().join(format!("part-{}.log", program.name)), &mut command)?;
    fs::rename(&unfinished, bin.join(&program.name)).with_context(|| program.name.clone())
}

/// The module that requires a source, made once per version.
fn wrapper(workspace: &Workspace, go: &Go, list: &List, source: &Source, cache: &Path) -> Result<PathBuf> {
    let folder = cache.join(format!("modules/{}-{}", source.name, source.version));
    if folder.join("go.sum").is_file() {
        return Ok(folder);
    }
    let unfinished = cache.join(format!("modules/.{}.unfinished", source.name));
    fs::remove_dir_all(&unfinished).ok();
    fs::create_dir_all(&unfinished).with_context(|| unfinished.display().to_string())?;
    fs::write(unfinished.join("go.mod"), go_mod(source, &own_go_mod(go, source)?)?)?;
    fs::write(unfinished.join("tools.go"), tools_go(list.programs_of(source)))?;
    let log = workspace.logs().join(format!("part-{}-modules.log", source.name));
    let mut tidy = go.command();
    process::step(
        &format!("modules of {} {}", source.name, source.version),
        &log,
        tidy.current_dir(&unfinished).args(["mod", "tidy"]),
    )?;
    fs::rename(&unfinished, &folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}

/// The go.mod that the module itself has, as JSON.
fn own_go_mod(go: &Go, source: &Source) -> Result<Value> {
    let wanted = format!("{}@{}", source.module, source.version);
    let told = process::output(go.command().args(["mod", "download", "-json", &wanted]))?;
    let told: Value = serde_json::from_str(&told).with_context(|| wanted.clone())?;
    let file = told["GoMod"].as_str().with_context(|| format!("{wanted} has no go.mod"))?;
    let text = process::output(go.command().args(["mod", "edit", "-json", file]))?;
    serde_json::from_str(&text).with_context(|| file.to_owned())
}

/// What a go.mod requires of a module that has no published version of that name.
const UNPUBLISHED: &str = "v0.0.0";

/// Requires the module. What it takes from folders of its own is taken as
/// published: at the version that it requires itself, if that is one, else at
/// the version that we pin.
fn go_mod(source: &Source, own: &Value) -> Result<String> {
    let language = own["Go"].as_str().unwrap_or("1.24");
    let mut text = format!("module warren.invalid/parts/{}\n\ngo {language}\n\n", source.name);
    text += &format!("require {} {}\n", source.module, source.version);
    let entries = |key: &str| own[key].as_array().cloned().unwrap_or_default();
    let required = entries("Require");
    for replaced in entries("Replace") {
        let path = replaced["Old"]["Path"].as_str().unwrap_or_default();
        let is_folder = replaced["New"]["Path"].as_str().is_some_and(|by| by.starts_with('.'));
        let unpublished = required.iter().any(|other| other["Path"] == path && other["Version"] == UNPUBLISHED);
        if is_folder && unpublished {
            let version = source.staging.as_deref().with_context(|| {
                format!("{} takes {path} from a folder of its own: parts.yaml must say its version", source.name)
            })?;
            text += &format!("replace {path} => {path} {version}\n");
        }
    }
    Ok(text)
}

/// Names the programs, so that `go mod tidy` keeps what they need.
fn tools_go<'a>(programs: impl Iterator<Item = &'a Program>) -> String {
    let imports = programs.map(|program| format!("import _ \"{}\"\n", program.package));
    format!("//go:build tools\n\npackage tools\n\n{}", imports.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn source(staging: Option<&str>) -> Source {
        Source {
            name: "kubernetes".into(),
            module: "k8s.io/kubernetes".into(),
            version: "v1.2.3".into(),
            staging: staging.map(Into::into),
            version_variables: Vec::new(),
        }
    }

    fn own() -> Value {
        json!({"Go": "1.26.0", "Require": [
            {"Path": "k8s.io/api", "Version": "v0.0.0"},
            {"Path": "example.org/part", "Version": "v3.2.1"},
        ], "Replace": [
            {"Old": {"Path": "k8s.io/api"}, "New": {"Path": "./staging/src/k8s.io/api"}},
            {"Old": {"Path": "example.org/part"}, "New": {"Path": "../part"}},
            {"Old": {"Path": "example.org/fork"}, "New": {"Path": "example.org/other", "Version": "v1.0.0"}},
        ]})
    }

    #[test]
    fn staging_modules_are_taken_at_their_published_version() {
        let text = go_mod(&source(Some("v0.2.3")), &own()).unwrap();
        assert!(text.contains("go 1.26.0\n") && text.contains("require k8s.io/kubernetes v1.2.3\n"), "{text}");
        assert!(text.contains("replace k8s.io/api => k8s.io/api v0.2.3\n"), "{text}");
        assert!(!text.contains("fork") && !text.contains("part =>"), "{text}");
    }

    #[test]
    fn a_staging_module_without_a_version_is_named() {
        let error = go_mod(&source(None), &own()).unwrap_err().to_string();
        assert!(error.contains("k8s.io/api"), "{error}");
    }
}
