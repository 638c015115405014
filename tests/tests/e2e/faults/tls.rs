//! Certificates: a server without a good one is not asked, and hears nothing that is secret.

use std::time::Duration;

use harvest::teacher::ErrorClass;
use tests::fault::{Authority, FaultServer, Identity};

use super::bench::{Bench, texts};
use super::setup::Setup;

const KEY: &str = "sk-not-for-strangers";

fn bench(server: &FaultServer, trusted: Option<&Authority>) -> Bench {
    let teacher = "api_key_env = \"HARVEST_FAULT_KEY\"".to_owned();
    let mut bench = Bench::of_texts(
        server,
        Setup {
            teacher,
            ..Setup::default()
        },
        texts(6),
    );
    bench.set_environment("HARVEST_FAULT_KEY", KEY);
    if let Some(authority) = trusted {
        let path = bench.folder.join("authority.pem");
        std::fs::write(&path, authority.pem()).unwrap();
        bench.set_environment("SSL_CERT_FILE", path.display().to_string());
        bench.set_environment(
            "SSL_CERT_DIR",
            bench.folder.join("none").display().to_string(),
        );
    }
    bench
}

#[test]
fn an_authority_of_the_environment_is_trusted() {
    let authority = Authority::new().unwrap();
    let server = FaultServer::start_tls(&authority, Identity::Good).unwrap();
    let bench = bench(&server, Some(&authority));
    let ended = bench.run(&[]);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    assert_eq!(bench.check_settled().answered.len(), 6);
    assert!(server.log().iter().all(|sent| sent.head.contains(KEY)));
}

fn refuse(trusted: bool, identity: Identity, cause: &str) {
    let authority = Authority::new().unwrap();
    let server = FaultServer::start_tls(&authority, identity).unwrap();
    let bench = bench(&server, trusted.then_some(&authority));
    let started = std::time::Instant::now();
    let ended = bench.run(&[]);
    assert_eq!(ended.status, Some(1), "{}", ended.stderr);
    assert!(
        ended.stderr.contains(cause),
        "{identity:?}: {}",
        ended.stderr
    );
    assert!(
        ended.stderr.contains("SSL_CERT_FILE"),
        "{identity:?}: {}",
        ended.stderr
    );
    assert_eq!(server.num_requests(), 0, "{identity:?}: nothing is sent");
    assert_eq!(
        server.num_connections(),
        6,
        "{identity:?}: no row is tried twice"
    );
    assert!(started.elapsed() < Duration::from_secs(30));
    let held = bench.held();
    assert!(held.answered.is_empty());
    for failure in held.failed.values() {
        assert_eq!(
            failure.class,
            ErrorClass::Deterministic,
            "{}",
            failure.message
        );
        assert!(failure.message.contains(cause), "{}", failure.message);
    }
}

#[test]
fn a_certificate_that_does_not_match_is_refused() {
    refuse(true, Identity::WrongName, "not valid for name");
    refuse(true, Identity::Expired, "expired");
    refuse(true, Identity::SelfSigned, "certificate");
    refuse(false, Identity::Good, "UnknownIssuer");
}
