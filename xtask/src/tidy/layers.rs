//! Dependencies point down only, and each crate root says what it is.
//!
//! ```text
//!   tools  benches  →  queue  →  engine  →  raft                    →  base
//!          sim      →            engine  →  segments → wal → io     →  base
//!          anybody's tests  →  history
//! ```

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::tree::Source;
use super::{Finding, find};
use crate::steps::Error;

/// What a package of the workspace may depend on within it, and, where that is bounded, outside of it.
struct Layer {
    package: &'static str,
    below: &'static [&'static str],
    outside: Option<&'static [&'static str]>,
}

const ENGINE_BELOW: &[&str] =
    &["coracle-base", "coracle-io", "coracle-wal", "coracle-segments", "coracle-raft"];
const TOP_BELOW: &[&str] = &[
    "coracle-base",
    "coracle-io",
    "coracle-wal",
    "coracle-segments",
    "coracle-raft",
    "coracle",
    "coracle-queue",
];

/// It judges what others did: their tests may use it.
const CHECKER: &str = "coracle-history";

/// The arrows of the picture above. `base` and `raft` take next to nothing from outside.
const LAYERS: [Layer; 13] = [
    Layer { package: "coracle-base", below: &[], outside: Some(&["crc32c", "thiserror"]) },
    Layer { package: CHECKER, below: &[], outside: Some(&[]) },
    Layer { package: "coracle-raft", below: &["coracle-base"], outside: Some(&["smallvec", "thiserror"]) },
    Layer { package: "coracle-io", below: &["coracle-base"], outside: None },
    Layer { package: "coracle-wal", below: &["coracle-base", "coracle-io"], outside: None },
    Layer {
        package: "coracle-segments",
        below: &["coracle-base", "coracle-io", "coracle-wal"],
        outside: None,
    },
    Layer { package: "coracle", below: ENGINE_BELOW, outside: None },
    Layer { package: "coracle-queue", below: &["coracle-base", "coracle-io", "coracle"], outside: None },
    Layer {
        package: "coracle-sim",
        below: &["coracle-base", "coracle-io", "coracle-wal", "coracle-segments", "coracle", CHECKER],
        outside: None,
    },
    Layer { package: "coracle-tools", below: TOP_BELOW, outside: None },
    Layer { package: "coracle-benches", below: TOP_BELOW, outside: None },
    Layer { package: "coracle-fuzz", below: TOP_BELOW, outside: None },
    Layer { package: "xtask", below: &[], outside: None },
];

/// The kernel's face: only `io` may see it.
const ONLY_IO: [&str; 3] = ["libc", "io-uring", "tokio-uring"];

/// A package of the workspace, as its manifest describes it.
#[derive(Debug, Clone)]
pub(super) struct Package {
    name: String,
    manifest: String,
    dependencies: Vec<Dependency>,
    /// Root files of libraries, programs and examples.
    roots: Vec<String>,
}

#[derive(Debug, Clone)]
struct Dependency {
    name: String,
    /// For tests, examples and benches alone.
    dev: bool,
    features: Vec<String>,
}

/// Asks cargo for the workspace's packages.
pub(super) fn packages(root: &Path) -> Result<Vec<Package>, Error> {
    let words = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
    let step = || format!("cargo {}", words.join(" "));
    let output = Command::new("cargo")
        .args(words)
        .current_dir(root)
        .output()
        .map_err(|source| Error::NotStarted { step: step(), source })?;
    if !output.status.success() {
        return Err(Error::Metadata { what: String::from_utf8_lossy(&output.stderr).into_owned() });
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| Error::Metadata { what: error.to_string() })?;
    let root = text(&metadata["workspace_root"]);
    Ok(array(&metadata["packages"]).iter().map(|package| read_package(package, &root)).collect())
}

fn read_package(package: &Value, root: &str) -> Package {
    let relative = |path: &Value| text(path).trim_start_matches(root).trim_start_matches('/').to_owned();
    let dependency = |one: &Value| Dependency {
        name: text(&one["name"]),
        dev: one["kind"] == "dev",
        features: array(&one["features"]).iter().map(text).collect(),
    };
    let is_root = |target: &&Value| {
        array(&target["kind"]).iter().any(|kind| ["lib", "bin", "example"].contains(&text(kind).as_str()))
    };
    Package {
        name: text(&package["name"]),
        manifest: relative(&package["manifest_path"]),
        dependencies: array(&package["dependencies"]).iter().map(dependency).collect(),
        roots: array(&package["targets"]).iter().filter(is_root).map(|t| relative(&t["src_path"])).collect(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Every dependency of every package points down, and planted bugs and fakes stay out of what is shipped.
pub(super) fn check(packages: &[Package]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in packages {
        let Some(layer) = LAYERS.iter().find(|layer| layer.package == package.name) else {
            findings.push(Finding::new(
                &package.manifest,
                0,
                format!("package {} has no layer", package.name),
            ));
            continue;
        };
        for dependency in &package.dependencies {
            findings.extend(
                complaint(layer, dependency).map(|complaint| Finding::new(&package.manifest, 0, complaint)),
            );
        }
    }
    findings
}

fn complaint(layer: &Layer, dependency: &Dependency) -> Option<String> {
    let (package, name) = (layer.package, dependency.name.as_str());
    let ours = LAYERS.iter().any(|layer| layer.package == name);
    let has = |feature: &str| dependency.features.iter().any(|one| one == feature);
    // A crate's tests may use itself, the checker, and the fakes of `io`; nothing else reaches upwards or sideways.
    let is_for_tests = dependency.dev && name == CHECKER;
    if ours && name != package && !is_for_tests && !layer.below.contains(&name) {
        return Some(format!("{package} may not depend on {name}: dependencies point down only"));
    }
    if !dependency.dev && !ours && layer.outside.is_some_and(|allowed| !allowed.contains(&name)) {
        return Some(format!("{package} takes next to nothing from outside: not {name}"));
    }
    if ONLY_IO.contains(&name) && package != "coracle-io" {
        return Some(format!("only coracle-io may depend on {name}, not {package}"));
    }
    if has("breaks") && package != "coracle-sim" {
        return Some(format!("only coracle-sim turns on planted bugs, not {package}"));
    }
    if has("fake") && !dependency.dev && !["coracle-sim", "coracle-fuzz"].contains(&package) {
        return Some(format!("{package} may use fakes in its tests only"));
    }
    None
}

/// Every library, program and example begins by saying its job and forbids unsafe code; `io` and `base` deny it, for
/// one place in each allows it; `raft` is `no_std`.
pub(super) fn check_roots(packages: &[Package], sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in packages {
        for path in &package.roots {
            let Some(source) = find(sources, path) else { continue };
            findings.extend(root_complaints(package, source).map(|what| Finding::new(path, 1, what)));
        }
    }
    findings
}

fn root_complaints(package: &Package, source: &Source) -> impl Iterator<Item = &'static str> {
    let has = |line: &str| source.text.lines().any(|one| one.trim() == line);
    let is_library = source.path.ends_with("/lib.rs");
    let fenced = if ["coracle-io", "coracle-base"].contains(&package.name.as_str()) && is_library {
        has("#![deny(unsafe_code)]")
    } else {
        has("#![forbid(unsafe_code)]")
    };
    let no_std = has("#![no_std]") || has("#![cfg_attr(not(test), no_std)]");
    [
        (
            !source.text.starts_with("//! "),
            "the root file does not begin with a `//!` header that says its job",
        ),
        (!fenced, "the root file lacks #![forbid(unsafe_code)] (libraries of io and base: deny)"),
        (package.name == "coracle-raft" && is_library && !no_std, "the Raft core must be #![no_std]"),
    ]
    .into_iter()
    .filter_map(|(broken, what)| broken.then_some(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[(&str, bool, &[&str])]) -> Package {
        Package {
            name: name.to_owned(),
            manifest: format!("{name}/Cargo.toml"),
            dependencies: dependencies
                .iter()
                .map(|(name, dev, features)| Dependency {
                    name: (*name).to_owned(),
                    dev: *dev,
                    features: features.iter().map(|feature| (*feature).to_owned()).collect(),
                })
                .collect(),
            roots: vec![format!("{name}/src/lib.rs")],
        }
    }

    fn complaints(name: &str, dependency: (&str, bool, &[&str])) -> usize {
        check(&[package(name, &[dependency])]).len()
    }

    #[test]
    fn dependencies_point_down_only() {
        assert_eq!(complaints("coracle-wal", ("coracle-io", false, &[])), 0);
        assert_eq!(complaints("coracle-io", ("coracle-wal", false, &[])), 1);
        assert_eq!(complaints("coracle-raft", ("coracle-io", true, &[])), 1);
        assert_eq!(complaints("coracle-wal", ("coracle-raft", false, &[])), 1);
        assert_eq!(complaints("coracle", ("coracle-sim", true, &[])), 1);
        assert_eq!(complaints("coracle-sim", ("coracle-raft", false, &[])), 1);
        assert_eq!(complaints("coracle", ("coracle-history", false, &[])), 1);
        assert_eq!(complaints("coracle", ("coracle-history", true, &[])), 0);
        assert_eq!(complaints("coracle-unheard-of", ("coracle-io", false, &[])), 1);
    }

    #[test]
    fn the_core_takes_next_to_nothing_and_the_kernel_is_ios() {
        assert_eq!(complaints("coracle-raft", ("rand", false, &[])), 1);
        assert_eq!(complaints("coracle-raft", ("rand", true, &[])), 0);
        assert_eq!(complaints("coracle-wal", ("libc", false, &[])), 1);
        assert_eq!(complaints("coracle-io", ("libc", false, &[])), 0);
    }

    #[test]
    fn fakes_and_planted_bugs_stay_out_of_what_is_shipped() {
        assert_eq!(complaints("coracle-wal", ("coracle-io", false, &["fake"])), 1);
        assert_eq!(complaints("coracle-wal", ("coracle-io", true, &["fake"])), 0);
        assert_eq!(complaints("coracle-sim", ("coracle-io", false, &["fake"])), 0);
        assert_eq!(complaints("coracle-tools", ("coracle", false, &["breaks"])), 1);
        assert_eq!(complaints("coracle-sim", ("coracle", false, &["breaks"])), 0);
    }

    #[test]
    fn roots_say_their_job_and_forbid_unsafe_code() {
        let check = |name: &str, text: &str| {
            let package = package(name, &[]);
            let source = Source { path: format!("{name}/src/lib.rs"), text: text.to_owned() };
            check_roots(&[package], &[source]).len()
        };
        assert_eq!(check("coracle-wal", "//! Job.\n#![forbid(unsafe_code)]\n"), 0);
        assert_eq!(check("coracle-wal", "#![forbid(unsafe_code)]\n"), 1);
        assert_eq!(check("coracle-wal", "//! Job.\n#![deny(unsafe_code)]\n"), 1);
        assert_eq!(check("coracle-io", "//! Job.\n#![deny(unsafe_code)]\n"), 0);
        assert_eq!(check("coracle-raft", "//! Job.\n#![forbid(unsafe_code)]\n"), 1);
        assert_eq!(check("coracle-raft", "//! Job.\n#![no_std]\n#![forbid(unsafe_code)]\n"), 0);
    }
}
