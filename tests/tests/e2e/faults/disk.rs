//! A full disk: the run ends, and once there is space again it goes on where it was.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use tests::fault::{FaultServer, Schedule};

use super::bench::{Bench, texts};
use super::judge::Judge;
use super::setup::Setup;

const NUM_ROWS: usize = 1_200;

/// A small tmpfs in a mount namespace of its own, which needs no rights where user namespaces are allowed.
struct SmallDisk {
    holder: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    mount: PathBuf,
}

impl SmallDisk {
    fn new(folder: &Path, num_kib: usize) -> Self {
        let ways: [&[&str]; 2] = [&["--user", "--map-root-user", "--mount"], &["--mount"]];
        for way in ways {
            let mut holder = Command::new("unshare")
                .args(way)
                .args([
                    "sh",
                    "-c",
                    "while read command; do eval \"$command\" && echo done || echo failed; done",
                ])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("`unshare` of util-linux is installed");
            let stdin = holder.stdin.take().unwrap();
            let stdout = BufReader::new(holder.stdout.take().unwrap());
            // What is mounted there is seen through the holder.
            let mount = Path::new("/proc")
                .join(holder.id().to_string())
                .join("root");
            let mount = mount.join(folder.strip_prefix("/").unwrap());
            let mut disk = Self {
                holder,
                stdin,
                stdout,
                mount,
            };
            if disk.say(&format!(
                "mount -t tmpfs -o size={num_kib}k tmpfs '{}'",
                folder.display()
            )) {
                return disk;
            }
        }
        panic!(
            "a small disk cannot be mounted here: allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, or \
            kernel.apparmor_restrict_unprivileged_userns=0), or run the suite as root"
        );
    }

    fn say(&mut self, command: &str) -> bool {
        let mut answer = String::new();
        let is_heard =
            writeln!(self.stdin, "{command}").is_ok() && self.stdout.read_line(&mut answer).is_ok();
        is_heard && answer.trim() == "done"
    }

    fn grow(&mut self, folder: &Path) {
        assert!(self.say(&format!(
            "mount -o remount,size=256m '{}'",
            folder.display()
        )));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Which folders lie on the small disk.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Small {
    Everything,
    /// Journal and temporary files.
    Work,
    /// Finished shards and the manifest.
    Store,
}

/// Whether the disk was too small for the rows.
fn check(small: Small, num_kib: usize) -> bool {
    let server = FaultServer::start(Schedule::CALM, Duration::ZERO).unwrap();
    let setup = Setup {
        batch: 4,
        concurrency: 4,
        rows_per_shard: 500,
        ..Setup::default()
    };
    let mut bench = Bench::of_texts(&server, setup, texts(NUM_ROWS));
    let point = bench.folder.join("small");
    std::fs::create_dir(&point).unwrap();
    let mut disk = SmallDisk::new(&point, num_kib);
    let seen = disk.mount.display().to_string();
    let (store, work) = match small {
        Small::Everything => (format!("{seen}/cache"), None),
        Small::Work => ("cache".to_owned(), Some(format!("{seen}/work"))),
        Small::Store => (format!("{seen}/cache"), Some("work".to_owned())),
    };
    bench.place(&store, work.as_deref());
    bench.set_environment("TMPDIR", &seen);

    let ended = bench.run(&[]);
    let was_full = ended.status != Some(0);
    if was_full {
        assert_eq!(
            ended.status,
            Some(1),
            "{small:?} {num_kib}: {}",
            ended.stderr
        );
        assert!(
            ended.stderr.contains("free some space"),
            "{small:?} {num_kib}: {}",
            ended.stderr
        );
        // Without space a second run loses nothing either.
        bench.run(&[]);
    }
    disk.grow(&point);
    let ended = bench.run(&[]);
    assert_eq!(
        ended.status,
        Some(0),
        "{small:?} {num_kib}: {}",
        ended.stderr
    );
    assert_eq!(bench.check_settled().answered.len(), NUM_ROWS);
    let log = server.log();
    Judge {
        log: &log,
        kills: &[],
        setup: &bench.setup,
    }
    .check_nothing_is_repaid();
    was_full
}

#[test]
fn a_full_disk_costs_nothing_wherever_it_ends() {
    // From a disk that takes nothing to one that takes all.
    let num_full = [16, 300, 340, 400, 470, 540, 620, 4_096]
        .into_iter()
        .filter(|num_kib| check(Small::Everything, *num_kib))
        .count();
    assert!(
        (3..8).contains(&num_full),
        "{num_full} disks were too small"
    );
}

#[test]
fn a_full_disk_of_the_journal_costs_nothing() {
    assert!(check(Small::Work, 320) && check(Small::Work, 380));
}

#[test]
fn a_full_disk_of_the_shards_costs_nothing() {
    assert!(check(Small::Store, 4) && check(Small::Store, 24));
}
