//! The API in JSON against its own description: schemathesis makes valid and invalid requests from
//! the description, and checks the answers against it.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use chunkcache_tests::python_tools::python_tool;
use chunkcache_tests::{Cluster, Object};

const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance";

#[test]
fn calls_in_json_are_as_openapi_says() {
    let Some(schemathesis) = python_tool("schemathesis") else {
        return;
    };
    let cluster = Cluster::start();
    cluster.add_source("films");
    cluster.put("/a.bin", Object::generated(1, 3 << 20));
    assert_eq!(cluster.edge().get("/films/a.bin").status, 200);
    let mut command = Command::new(schemathesis);
    let directory = chunkcache_tests::cluster::directory();
    command
        // It leaves example files in its working directory.
        .current_dir(directory.path())
        .args(["run", "--checks", CHECKS, "--max-examples", "20"])
        .args(["--generation-deterministic", "--no-color"])
        // A coordinator that stepped down answers 503 until it leads again, as documented.
        .args(["--exclude-operation-id", "StepDown"])
        .arg(format!("http://{}/openapi.json", cluster.coordinator.http));
    let output = command.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}");
    assert!(printed.contains("Tested: 24"), "{printed}");
    // It may have removed the source: it learns names from answers.
    assert_eq!(cluster.coordinator.get("/readyz").status, 200);
}
