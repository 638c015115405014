//! Certificates: a server without a good one is not asked, and hears nothing that is secret.

use std::time::Duration;

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
        1,
        "{identity:?}: every row would fail alike"
    );
    assert!(started.elapsed() < Duration::from_secs(30));
    let held = bench.held();
    assert!(held.answered.is_empty());
    assert!(held.failed.is_empty(), "{identity:?}: no row is to blame");
}

#[test]
fn a_certificate_that_does_not_match_is_refused() {
    refuse(true, Identity::WrongName, "not valid for name");
    refuse(true, Identity::Expired, "expired");
    refuse(true, Identity::SelfSigned, "certificate");
    refuse(false, Identity::Good, "UnknownIssuer");
}
