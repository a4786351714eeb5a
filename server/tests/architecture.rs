//! Rules of the architecture that the compiler does not check. The lists may only get shorter.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};

/// The files that may use the store without a scope, with the reasons.
const MAY_SEE_EVERYTHING: &[&str] = &[
    // their whole work is for all publishers
    "dispatcher/",
    "jobs/",
    "server/",
    // the operator's routes
    "api/src/publishers/publisher.rs",
    "api/src/operations/audit.rs",
    "api/src/operations/jobs.rs",
    // hands it to the operator's routes
    "api/src/auth/caller.rs",
    // records once a minute that a bootstrap token was used
    "api/src/auth/bootstrap.rs",
    // tests alone
    "dashboard/src/site.rs",
];

/// The files that may use people's rows, which belong to no publisher, with the reasons. All others
/// call the crate `identity`, which decides who gets in.
const MAY_SEE_PEOPLE: &[&str] = &[
    // decides who gets in
    "identity/",
    // sends mails
    "dispatcher/",
    // removes what has ended
    "jobs/",
    // the operator's commands
    "server/",
    // reads who invited
    "dashboard/src/handlers/join.rs",
    // lists the memberships of the person who is signed in
    "dashboard/src/handlers/publisher.rs",
    // tests alone
    "dashboard/src/site.rs",
];

/// The crates of this workspace whose code is checked for calls of the store. Not the store itself.
const CRATES: [&str; 10] = [
    "api",
    "web",
    "dashboard",
    "identity",
    "dispatcher",
    "jobs",
    "upstream",
    "outbound",
    "server",
    "domain",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// The files that contain a call, by their paths from the root.
fn callers(call: &str) -> Vec<String> {
    let root = root();
    let mut files = Vec::new();
    for crate_name in CRATES {
        sources(&root.join(crate_name).join("src"), &mut files);
    }
    assert!(
        files.len() > 30,
        "the sources are not where this test looks"
    );
    let calls = |file: &&PathBuf| std::fs::read_to_string(file).unwrap().contains(call);
    let names = files.iter().filter(calls).map(|file| {
        let name = file.strip_prefix(&root).unwrap();
        name.to_string_lossy().into_owned()
    });
    names.collect()
}

#[test]
fn only_those_who_may_ask_for_the_store_without_a_scope() {
    let callers = callers(".system()");
    assert!(!callers.is_empty());
    for name in callers {
        let may = MAY_SEE_EVERYTHING.iter().any(|one| name.starts_with(one));
        assert!(may, "{name} asks for the store without a scope");
    }
}

#[test]
fn only_those_who_may_ask_for_people_s_rows() {
    let callers = callers(".identity()");
    assert!(!callers.is_empty());
    for name in callers {
        let may = MAY_SEE_PEOPLE.iter().any(|one| name.starts_with(one));
        assert!(may, "{name} asks for people's rows");
    }
}

#[test]
fn the_store_knows_none_of_its_planes() {
    let mut files = Vec::new();
    sources(&root().join("persistence/src/store"), &mut files);
    assert!(
        files.len() > 30,
        "the sources are not where this test looks"
    );
    for file in files.iter().filter(|file| !file.ends_with("tests.rs")) {
        let text = std::fs::read_to_string(file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let imports = code
            .split("\n\n")
            .filter(|part| part.contains("use crate::"));
        let imports: String = imports.collect();
        for plane in [
            "identity",
            "operations",
            "publishers",
            "runs",
            "trains",
            "webhooks",
        ] {
            let names = code.contains(&format!("crate::{plane}"))
                || imports.contains(&format!("{plane}::"));
            assert!(!names, "{} names the plane {plane}", file.display());
        }
    }
}

#[test]
fn the_rules_know_neither_database_nor_network() {
    let manifest = std::fs::read_to_string(root().join("domain/Cargo.toml")).unwrap();
    for name in ["sea-orm", "sqlx", "poem", "tokio", "reqwest", "hyper"] {
        assert!(
            !manifest.contains(&format!("\n{name}")),
            "domain depends on {name}"
        );
    }
}

#[test]
fn the_ground_of_http_knows_neither_store_nor_resources() {
    let manifest = std::fs::read_to_string(root().join("web/Cargo.toml")).unwrap();
    for name in [
        "persistence",
        "identity",
        "upstream",
        "api",
        "sea-orm",
        "sqlx",
    ] {
        assert!(
            !manifest.contains(&format!("\n{name}")),
            "web depends on {name}"
        );
    }
}

#[test]
fn how_people_get_in_knows_no_http_surface() {
    for crate_name in ["identity", "dashboard"] {
        let manifest = root().join(crate_name).join("Cargo.toml");
        let manifest = std::fs::read_to_string(manifest).unwrap();
        assert!(!manifest.contains("\napi"), "{crate_name} depends on api");
    }
    let manifest = std::fs::read_to_string(root().join("identity/Cargo.toml")).unwrap();
    for name in ["poem", "web", "dashboard"] {
        assert!(
            !manifest.contains(&format!("\n{name}")),
            "identity depends on {name}"
        );
    }
}
