//! A data set, a configuration and runs of the real binary over them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harvest::failures::{Failure, Failures};
use harvest::{Key, Place};
use schemas::record::SignalValue;
use schemas::shard::{ShardReader, list_shards};
use schemas::{ExampleId, TeacherRecord};
use tests::binary;
use tests::fault::{FaultServer, reply_text, reply_tokens};
use tests::server::embedding;

/// The base of the seeds of a chat teacher: draw `n` is sent with this and `n`.
const SEED: u32 = 40;
/// A run that takes longer hangs.
const LONGEST_RUN: Duration = Duration::from_secs(100);

/// How the teacher is configured.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) is_chat: bool,
    pub(super) batch: usize,
    pub(super) concurrency: usize,
    pub(super) draws: u32,
    pub(super) max_tries: u32,
    pub(super) rows_per_shard: usize,
    pub(super) timeout_seconds: u32,
    /// Further lines of `[teacher]`.
    pub(super) teacher: String,
    /// Lines of `[budget]`.
    pub(super) budget: String,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            is_chat: false,
            batch: 4,
            concurrency: 4,
            draws: 1,
            max_tries: 2,
            rows_per_shard: 16,
            timeout_seconds: 30,
            teacher: String::new(),
            budget: String::new(),
        }
    }
}

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
        let kind = if setup.is_chat {
            format!(
                "kind = \"chat\"\nsignals = [\"text\", \"logprobs\"]\ntop_logprobs = 2\nmax_tokens = 8\nseed = {SEED}\n\
                price = {{ input_per_million = 1000.0, output_per_million = 5000.0, per_request = 0.001 }}"
            )
        } else {
            format!(
                "kind = \"embeddings\"\nbatch = {}\ndimensions = {}\nprice = {{ input_per_million = 1000.0 }}",
                setup.batch,
                tests::server::WIDTH
            )
        };
        format!(
            "[dataset]\npath = \".\"\n[teacher]\n{kind}\nurl = \"{}\"\nmodel = \"numbers\"\nprompt = \"{{text}}\"\nmax_reply_mib = 1\n\
            timeout_seconds = {}\n{}\n[cache]\npath = \"{}\"\n{}\ndtype = \"f32\"\nrows_per_shard = {}\n\
            [run]\nconcurrency = {}\ndraws = {}\nmax_tries = {}\nmax_failure_share = 1.0\n[budget]\n{}\n",
            self.url,
            setup.timeout_seconds,
            setup.teacher,
            self.store,
            self.work
                .as_ref()
                .map(|work| format!("work = \"{work}\""))
                .unwrap_or_default(),
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
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(super) fn spawn(&self, arguments: &[&str]) -> Child {
        self.command("run", arguments).spawn().unwrap()
    }

    /// Runs to the end.
    pub(super) fn run(&self, arguments: &[&str]) -> Ended {
        wait(self.spawn(arguments))
    }

    /// Runs another verb.
    pub(super) fn verb(&self, verb: &str, arguments: &[&str]) -> Ended {
        wait(self.command(verb, arguments).spawn().unwrap())
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

    pub(super) fn cache(&self) -> PathBuf {
        self.folder.join(&self.store)
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
        for shard in list_shards(&self.cache()).unwrap() {
            for record in ShardReader::open(&shard).unwrap().records().unwrap() {
                let record = record.unwrap();
                let key = (record.id, record.draw);
                assert!(
                    answered.insert(key, record).is_none(),
                    "{key:?} is in the shards twice"
                );
            }
        }
        let failures = Failures::open(&Place::local(&self.cache())).unwrap();
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
            self.check_values(&expected[key], record);
        }
        for entry in std::fs::read_dir(self.cache()).unwrap() {
            let name = entry.unwrap().file_name();
            let name = name.to_string_lossy();
            let is_left_over = name.ends_with(".tmp")
                || (name.ends_with(".journal") && name.starts_with("part"))
                || name == "failures.journal";
            assert!(!is_left_over, "`{name}` is left in the cache");
        }
        held
    }

    fn check_values(&self, text: &str, record: &TeacherRecord) {
        if !self.setup.is_chat {
            assert_eq!(
                record.signals["feature"],
                SignalValue::Vector(embedding(text)),
                "{text}"
            );
            return;
        }
        let seed = u64::from(SEED + record.draw);
        assert_eq!(
            record.signals["text"],
            SignalValue::Text(reply_text(text, Some(seed)))
        );
        let SignalValue::TokenTopK(top_k) = &record.signals["logprobs"] else {
            panic!("log-probabilities are tokens");
        };
        let stored: Vec<(String, f32)> = top_k
            .positions
            .iter()
            .map(|position| {
                let chosen = position.chosen.as_ref().unwrap();
                assert_eq!(chosen, &position.entries[0]);
                assert_eq!(position.entries.len(), 2);
                let bytes = chosen.token.bytes.clone().unwrap();
                (String::from_utf8(bytes).unwrap(), chosen.logprob)
            })
            .collect();
        assert_eq!(stored, reply_tokens(text), "{text}");
    }
}

/// Waits for the end of a run.
pub(super) fn wait(mut child: Child) -> Ended {
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
pub(super) fn wait_until(child: &mut Child, is_so: impl Fn() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if is_so() {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return is_so();
        }
        assert!(started.elapsed() < LONGEST_RUN, "it does not come to this");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// `kill -9`; returns when it struck.
pub(super) fn kill(child: &mut Child, server: &FaultServer) -> Instant {
    child.kill().unwrap();
    child.wait().unwrap();
    server.client_died();
    Instant::now()
}

/// Texts that are all different.
pub(super) fn texts(num: usize) -> impl Iterator<Item = String> {
    (0..num).map(|row| format!("row number {row}"))
}
