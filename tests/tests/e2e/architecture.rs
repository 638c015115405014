//! Who may depend on whom, and what the default build may contain.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use tests::repository;

/// Names of the workspace crates that `member` depends on, in any table of its manifest.
fn workspace_dependencies(member: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(repository().join(member).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    ["dependencies", "dev-dependencies", "build-dependencies"]
        .iter()
        .filter_map(|table| manifest.get(*table)?.as_table())
        .flat_map(toml::Table::keys)
        .filter(|name| repository().join(name).join("Cargo.toml").exists())
        .cloned()
        .collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn the_stages_know_the_contract_and_not_each_other() {
    assert_eq!(workspace_dependencies("schemas"), set(&[]));
    assert_eq!(workspace_dependencies("harvest"), set(&["schemas"]));
    assert_eq!(workspace_dependencies("distill"), set(&["schemas"]));
    assert_eq!(
        workspace_dependencies("tests"),
        set(&["distill", "harvest", "schemas"])
    );
}

#[test]
fn the_top_level_holds_the_house_and_nothing_else() {
    let output = Command::new("git")
        .args(["ls-files", "--cached"])
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(output.status.success(), "the suite runs in a git checkout");
    let files = String::from_utf8(output.stdout).unwrap();
    let top: BTreeSet<&str> = files
        .lines()
        .filter_map(|file| Path::new(file).iter().next()?.to_str())
        .filter(|name| !name.starts_with('.'))
        .collect();
    let house = [
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "README.md",
        "data",
        "distill",
        "docs",
        "harvest",
        "schemas",
        "scripts",
        "tests",
    ];
    assert_eq!(top, BTreeSet::from(house));
}

fn normal_dependencies(arguments: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--locked",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
            "--format",
            "{lib}",
        ])
        .args(arguments)
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_default_build_pulls_in_nothing_that_only_cuda_needs() {
    let is_gpu = |name: &&String| {
        [
            "cudarc",
            "cubecl_cuda",
            "cubecl_cpp",
            "cubecl_llvm",
            "burn_cuda",
            "burn_cubecl",
        ]
        .contains(&name.as_str())
    };
    let default = normal_dependencies(&["--workspace"]);
    assert!(
        default.contains("burn_flex"),
        "the CPU backend is in the default build: {default:?}"
    );
    assert_eq!(
        default.iter().filter(is_gpu).collect::<Vec<_>>(),
        Vec::<&String>::new()
    );
    let cuda = normal_dependencies(&["--package", "distill", "--features", "cuda"]);
    assert!(
        cuda.contains("burn_cuda"),
        "the check above looks at the right names"
    );
}

#[test]
fn the_contract_has_neither_tensors_nor_async() {
    let schemas = normal_dependencies(&["--package", "schemas"]);
    for name in ["burn", "tokio", "reqwest"] {
        assert!(!schemas.contains(name), "schemas depends on {name}");
    }
    let harvest = normal_dependencies(&["--package", "harvest"]);
    assert!(!harvest.contains("burn") && !harvest.contains("tokenizers"));
    let distill = normal_dependencies(&["--package", "distill"]);
    assert!(!distill.contains("tokio") && !distill.contains("reqwest"));
}
