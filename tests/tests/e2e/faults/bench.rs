//! A data set, a configuration and runs of the real binary over them.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harvest::failures::{Failure, Failures};
use harvest::{Key, Place};
use schemas::shard::{ShardReader, list_shards};
use schemas::{ExampleId, TeacherRecord};
use tests::binary;
use tests::fault::FaultServer;

use super::judge::Kill;
use super::objects::{BUCKET, Server as ObjectServer};
use super::setup::{CLIENT, Setup};

/// A run that takes longer hangs.
const LONGEST_RUN: Duration = Duration::from_secs(100);

/// A folder with a data set and a configuration.
pub(super) struct Bench {
    _temporary: Option<tempfile::TempDir>,
    pub(super) folder: PathBuf,
    pub(super) setup: Setup,
    url: String,
    rows: Vec<(String, String)>,
    environment: Vec<(&'static str, String)>,
    /// `path` and `work` of `[cache]`.
    store: String,
    work: Option<String>,
    /// What the cache lies in where it is in no folder.
    objects: Option<ObjectServer>,
    num_clients: Cell<usize>,
}

/// A run that was started.
pub(super) struct Worker {
    /// The key of its requests.
    client: String,
    child: Child,
}

impl Worker {
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

/// What a run said.
pub(super) struct Ended {
    pub(super) status: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Ended {
    /// Rows that are neither answered nor failed; `None` where the run ended before it knew.
    pub(super) fn left(&self) -> Option<u64> {
        let line = self
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix("left"))?;
        line.trim().parse().ok()
    }
}

/// What a cache holds.
pub(super) struct Held {
    pub(super) answered: BTreeMap<Key, TeacherRecord>,
    pub(super) failed: BTreeMap<Key, Failure>,
}

impl Bench {
    /// Over rows of a text, which is sent, and a note, which is not.
    pub(super) fn new(server: &FaultServer, setup: Setup, rows: Vec<(String, String)>) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().to_owned();
        let bench = Self {
            _temporary: Some(temporary),
            folder,
            setup,
            url: server.url(),
            rows,
            environment: Vec::new(),
            store: "cache".to_owned(),
            work: None,
            objects: None,
            num_clients: Cell::new(0),
        };
        bench.write();
        bench
    }

    /// Over these texts.
    pub(super) fn of_texts(
        server: &FaultServer,
        setup: Setup,
        texts: impl IntoIterator<Item = String>,
    ) -> Self {
        Self::new(
            server,
            setup,
            texts
                .into_iter()
                .map(|text| (text, String::new()))
                .collect(),
        )
    }

    pub(super) fn set_environment(&mut self, name: &'static str, value: impl Into<String>) {
        self.environment.push((name, value.into()));
    }

    /// Puts the cache, and what only this worker needs, elsewhere.
    pub(super) fn place(&mut self, store: &str, work: Option<&str>) {
        store.clone_into(&mut self.store);
        self.work = work.map(str::to_owned);
        self.write();
    }

    /// Puts the cache into an object store of its own.
    pub(super) fn place_in_objects(&mut self) {
        let server = ObjectServer::start();
        self.set_environment("AWS_ENDPOINT", server.endpoint());
        for (name, value) in [
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "armada-test"),
            ("AWS_SECRET_ACCESS_KEY", "armada-test-key"),
        ] {
            self.set_environment(name, value);
        }
        self.objects = Some(server);
        self.place(&format!("s3://{BUCKET}/cache"), None);
    }

    /// The object store, where the cache lies in one.
    pub(super) fn objects(&self) -> Option<&ObjectServer> {
        self.objects.as_ref()
    }

    pub(super) fn reconfigure(&mut self, change: impl FnOnce(&mut Setup)) {
        change(&mut self.setup);
        self.write();
    }

    fn write(&self) {
        let mut rows = String::new();
        for (text, note) in &self.rows {
            let row = serde_json::json!({"text": text, "note": note, "label": "no"});
            writeln!(rows, "{row}").unwrap();
        }
        std::fs::write(self.folder.join("train.jsonl"), rows).unwrap();
        let task = "name = \"rows\"\nfields = [\"text\", \"note\"]\nlabel = \"label\"\nclasses = [\"no\", \"yes\"]\n\
            metric = \"accuracy\"\n[template]\nfirst = \"{text} {note}\"\n";
        std::fs::write(self.folder.join("task.toml"), task).unwrap();
        std::fs::write(self.folder.join("harvest.toml"), self.configuration()).unwrap();
    }

    fn configuration(&self) -> String {
        let setup = &self.setup;
        let work = self
            .work
            .as_ref()
            .map(|work| format!("work = \"{work}\""))
            .unwrap_or_default();
        format!(
            "[dataset]\npath = \".\"\n{}\n[cache]\npath = \"{}\"\n{work}\ndtype = \"f32\"\nrows_per_shard = {}\n\
            [run]\nconcurrency = {}\ndraws = {}\nmax_tries = {}\nmax_failure_share = 1.0\n[budget]\n{}\n",
            setup.teachers(&self.url),
            self.store,
            setup.rows_per_shard,
            setup.concurrency,
            setup.draws,
            setup.max_tries,
            setup.budget,
        )
    }

    fn command(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("harvest"));
        command
            .arg(verb)
            .arg(self.folder.join("harvest.toml"))
            .args(arguments)
            .env_remove("RUST_LOG")
            .env(CLIENT, self.client())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// The newest client's key.
    fn client(&self) -> String {
        format!("client-{}", self.num_clients.get())
    }

    /// Starts a run, which has a key of its own.
    pub(super) fn spawn(&self, arguments: &[&str]) -> Worker {
        self.num_clients.set(self.num_clients.get() + 1);
        if let Some(server) = &self.objects {
            // What a killed worker held is held for a while: it has passed.
            server.objects().seconds_ahead += 200;
        }
        Worker {
            client: self.client(),
            child: self.command("run", arguments).spawn().unwrap(),
        }
    }

    /// Runs to the end.
    pub(super) fn run(&self, arguments: &[&str]) -> Ended {
        wait(self.spawn(arguments))
    }

    /// Runs another verb.
    pub(super) fn verb(&self, verb: &str, arguments: &[&str]) -> Ended {
        wait(Worker {
            client: self.client(),
            child: self.command(verb, arguments).spawn().unwrap(),
        })
    }

    /// Runs a verb that reads no configuration.
    pub(super) fn tool(&self, arguments: &[&str]) -> Ended {
        let mut command = Command::new(binary("harvest"));
        command
            .args(arguments)
            .env_remove("RUST_LOG")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        wait(Worker {
            client: self.client(),
            child: command.spawn().unwrap(),
        })
    }

    /// Runs until nothing is left, as often as it takes.
    pub(super) fn run_until_settled(&self) -> Ended {
        let mut last = String::new();
        for _ in 0..60 {
            let ended = self.run(&[]);
            if ended.left() == Some(0) {
                return ended;
            }
            assert!(matches!(ended.status, Some(1 | 3)), "{}", ended.stderr);
            last = ended.stderr;
        }
        panic!("the rows are not settled after 60 runs: {last}");
    }

    /// Where the cache is a folder.
    pub(super) fn cache(&self) -> PathBuf {
        self.folder.join(&self.store)
    }

    /// The cache as a folder: of an object store, a copy.
    fn folder_of_cache(&self) -> PathBuf {
        let Some(server) = &self.objects else {
            return self.cache();
        };
        let copy = self.folder.join("copy");
        let _ = std::fs::remove_dir_all(&copy);
        std::fs::create_dir(&copy).unwrap();
        let objects = server.objects();
        for key in objects.keys() {
            let name = key.strip_prefix("cache/").unwrap();
            std::fs::write(copy.join(name), objects.bytes(&key)).unwrap();
        }
        copy
    }

    /// Every distinct example and draw, with its text.
    pub(super) fn keys(&self) -> BTreeMap<Key, String> {
        let keys = self.rows.iter().flat_map(|(text, note)| {
            let fields = [
                ("text".to_owned(), text.clone()),
                ("note".to_owned(), note.clone()),
            ];
            let id = ExampleId::of(&fields.into());
            (0..self.setup.draws).map(move |draw| ((id, draw), text.clone()))
        });
        keys.collect()
    }

    /// What the cache holds, each row of it once.
    pub(super) fn held(&self) -> Held {
        let mut answered = BTreeMap::new();
        let folder = self.folder_of_cache();
        for shard in list_shards(&folder).unwrap() {
            for record in ShardReader::open(&shard).unwrap().records().unwrap() {
                let record = record.unwrap();
                let key = (record.id, record.draw);
                assert!(
                    answered.insert(key, record).is_none(),
                    "{key:?} is in the shards twice"
                );
            }
        }
        let failures = Failures::open(&Place::local(&folder)).unwrap();
        let failed = failures
            .keys()
            .map(|key| (key, failures.find(&key).unwrap()));
        Held {
            answered,
            failed: failed.collect(),
        }
    }

    /// Checks that each example is once in the shards or among the failures, that what is stored is what the server
    /// says, and that no journal is left.
    pub(super) fn check_settled(&self) -> Held {
        let held = self.held();
        let expected = self.keys();
        let answered: BTreeSet<Key> = held.answered.keys().copied().collect();
        let failed: BTreeSet<Key> = held.failed.keys().copied().collect();
        assert_eq!(
            answered.intersection(&failed).count(),
            0,
            "rows are both answered and failed"
        );
        let settled: BTreeSet<Key> = answered.union(&failed).copied().collect();
        assert_eq!(
            settled,
            expected.keys().copied().collect(),
            "not every row is settled"
        );
        for (key, record) in &held.answered {
            self.setup.check_values(&expected[key], record);
        }
        assert_eq!(left_over(&self.folder), [""; 0], "files are left");
        held
    }
}

/// Files below `folder` that the end of all runs should have removed.
fn left_over(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(left_over(&path));
            continue;
        }
        let name = path.file_name().unwrap().to_string_lossy();
        let is_left_over = name.ends_with(".tmp")
            || (name.ends_with(".journal") && name.starts_with("part-"))
            || name == "failures.journal";
        if is_left_over {
            found.push(path.display().to_string());
        }
    }
    found
}

/// Waits for the end of a run.
pub(super) fn wait(worker: Worker) -> Ended {
    let mut child = worker.child;
    let read = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.unwrap().read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = read(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let stderr = read(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > LONGEST_RUN {
            child.kill().unwrap();
            panic!("the run hangs: {}", stderr.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ended {
        status: child.wait().unwrap().code(),
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

/// Waits until `is_so`, or until the run ended; whether it is so.
pub(super) fn wait_until(worker: &mut Worker, is_so: impl Fn() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if is_so() {
            return true;
        }
        if worker.has_ended() {
            return is_so();
        }
        assert!(started.elapsed() < LONGEST_RUN, "it does not come to this");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// `kill -9`.
pub(super) fn kill(mut worker: Worker) -> Kill {
    worker.child.kill().unwrap();
    worker.child.wait().unwrap();
    Kill {
        client: worker.client,
        at: Instant::now(),
    }
}

/// Texts that are all different.
pub(super) fn texts(num: usize) -> impl Iterator<Item = String> {
    (0..num).map(|row| format!("row number {row}"))
}
