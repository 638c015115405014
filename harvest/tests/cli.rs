//! The command line: help, refusals, exit statuses, and what is printed where.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use schemas::Manifest;
use serde_json::json;

fn harvest(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_harvest"));
    command
        .current_dir(folder)
        .args(arguments)
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

/// Status, standard output and standard error in one text.
fn shown(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let status = output.status.code().unwrap();
    format!(
        "status {status}\n--- stdout\n{}--- stderr\n{}",
        text(&output.stdout),
        text(&output.stderr)
    )
}

fn show(folder: &Path, arguments: &[&str]) -> String {
    shown(&harvest(folder, arguments))
}

const CONFIG: &str = "[dataset]\npath = \".\"\n[teacher]\nkind = \"sketch\"\n[cache]\npath = \"cache\"\nrows_per_shard = 2\n";

fn project(config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let task = "name = \"scenes\"\nfields = [\"text\"]\nlabel = \"label\"\nclasses = [\"no\", \"yes\"]\n\
                metric = \"accuracy\"\n[template]\nfirst = \"{text}\"\n";
    std::fs::write(folder.path().join("task.toml"), task).unwrap();
    write_rows(folder.path(), 3);
    std::fs::write(folder.path().join("harvest.toml"), config).unwrap();
    folder
}

fn write_rows(folder: &Path, num_rows: usize) {
    let colours = ["red", "green", "blue", "yellow"];
    let text = |colour: &str| format!("The {colour} circle is left of the big square.");
    let rows = colours[..num_rows]
        .iter()
        .map(|colour| json!({"text": text(colour), "label": "yes"}).to_string());
    let rows = rows.collect::<Vec<_>>().join("\n") + "\n";
    std::fs::write(folder.join("train.jsonl"), rows).unwrap();
}

#[test]
fn help_and_usage() {
    let folder = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(show(folder.path(), &["--help"]), @r#"
    status 0
    --- stdout
    Asks a teacher about every example of a data set, once, and keeps what it said

    Usage: harvest <COMMAND>

    Commands:
      check   Check the configuration, ask the teacher about a few examples, and tell what a run will take
      run     Ask the teacher about every row that the cache lacks
      status  Tell what a cache holds, from its manifest and the keys of its rows; reads no signal
      verify  Read every shard of a cache and check digests, row counts and keys
      freeze  Verify a cache, list its shards in the manifest and give it a digest
      merge   Add the rows of other caches of the same source to a cache, here or in an object store
      stats   Read every row of a cache and tell its quality
      card    Write the data card and the Croissant metadata of a cache
      import  Make a cache of features that were made elsewhere
      help    Print this message or the help of the given subcommand(s)

    Options:
      -h, --help     Print help
      -V, --version  Print version

    Exit status:
      0  done
      1  something to mend: usage, configuration, data, server, or rows that failed
      2  something failed that should not
      3  stopped before the end, what was received is committed

    Logs go to standard error; RUST_LOG chooses what is logged.
    --- stderr
    "#);
    insta::assert_snapshot!(show(folder.path(), &["freeze", "--help"]), @r#"
    status 0
    --- stdout
    Verify a cache, list its shards in the manifest and give it a digest

    Usage: harvest freeze [OPTIONS] <TARGET>

    Arguments:
      <TARGET>  The cache folder or address, or the configuration, with which rows are compared with the data set

    Options:
          --skip-bad-rows <N>  Skip up to N bad rows of the data set [default: 0]
          --allow-missing      Freeze although rows are missing; replies that are only in the journal are committed first
      -h, --help               Print help
    --- stderr
    "#);
    insta::assert_snapshot!(show(folder.path(), &["run"]), @r#"
    status 1
    --- stdout
    --- stderr
    error: the following required arguments were not provided:
      <CONFIG>

    Usage: harvest run <CONFIG>

    For more information, try '--help'.
    "#);
}

#[test]
fn configurations_are_refused_with_file_line_and_key() {
    let folder = project(&CONFIG.replace("kind", "image = true\ncolour = 3\nkind"));
    insta::assert_snapshot!(show(folder.path(), &["run", "harvest.toml"]), @r#"
    status 1
    --- stdout
    --- stderr
    error: harvest.toml:5: `teacher.colour`: unknown field `colour`, expected one of `kind`, `prompt`, `image_field`, `image_hosts`, `price`, `license`, `terms`, `image`
    hint: docs/harvest.md describes every key
    "#);
    let folder = project(&CONFIG.replace("rows_per_shard = 2", "dtype = \"f64\""));
    insta::assert_snapshot!(show(folder.path(), &["check", "harvest.toml"]), @r#"
    status 1
    --- stdout
    --- stderr
    error: harvest.toml:7: `cache.dtype`: unknown variant, expected `f16` or `f32`
    hint: docs/harvest.md describes every key
    "#);
    insta::assert_snapshot!(show(folder.path(), &["check", "nowhere.toml"]), @r#"
    status 1
    --- stdout
    --- stderr
    error: cannot read the configuration `nowhere.toml`: No such file or directory (os error 2)
    hint: name a TOML file, such as data/scenes/harvest.toml
    "#);
    let folder = project(&CONFIG.replace(
        "kind = \"sketch\"",
        "kind = \"sketch\"\nprompt = \"{premise}\"",
    ));
    insta::assert_snapshot!(show(folder.path(), &["run", "harvest.toml"]), @r#"
    status 1
    --- stdout
    --- stderr
    error: `teacher.prompt`: template `{premise}` names field `premise`; the fields are text
    hint: write fields of the task in braces: {premise}
    "#);
    let folder = project(&format!("{CONFIG}[run]\nsplits = [\"dev\"]\n"));
    insta::assert_snapshot!(show(folder.path(), &["run", "harvest.toml"]), @r#"
    status 1
    --- stdout
    --- stderr
    error: the data set has no split `dev`
    hint: its splits are train
    "#);
    let folder = project(CONFIG);
    insta::assert_snapshot!(show(folder.path(), &["import", "harvest.toml"]), @r#"
    status 1
    --- stdout
    --- stderr
    error: `harvest.toml` describes a teacher, and `harvest import` needs an import
    hint: `harvest run` reads [teacher] and [run]; `harvest import` reads [import]
    "#);
}

/// A server that answers every request with what `script` makes of its body; it lives as long as the runtime.
fn serve(
    runtime: &tokio::runtime::Runtime,
    script: fn(&serde_json::Value) -> serde_json::Value,
) -> String {
    serve_with(
        runtime,
        move |axum::Json(body): axum::Json<serde_json::Value>| async move { axum::Json(script(&body)) },
    )
}

fn serve_with<T: 'static>(
    runtime: &tokio::runtime::Runtime,
    answer: impl axum::handler::Handler<T, ()>,
) -> String {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(axum::routing::post(answer));
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        axum::serve(listener, router).await
    });
    url
}

/// A server that answers every request with what `script` makes of its body: a status and a body.
fn serve_statuses(
    runtime: &tokio::runtime::Runtime,
    script: fn(&serde_json::Value) -> (u16, serde_json::Value),
) -> String {
    serve_with(
        runtime,
        move |axum::Json(body): axum::Json<serde_json::Value>| async move {
            let (status, reply) = script(&body);
            let status = axum::http::StatusCode::from_u16(status).unwrap();
            (status, axum::Json(reply))
        },
    )
}

/// A project over one picture.
fn pictures(teacher: &str) -> tempfile::TempDir {
    let section = format!("[teacher]\nimage_field = \"text\"\nmodel = \"m\"\n{teacher}\n");
    let folder = project(&CONFIG.replace("[teacher]\nkind = \"sketch\"\n", &section));
    let picture = image::RgbImage::new(2, 2);
    picture.save(folder.path().join("black.png")).unwrap();
    let row = json!({"text": "black.png", "label": "yes"});
    std::fs::write(folder.path().join("train.jsonl"), format!("{row}\n")).unwrap();
    folder
}

#[test]
fn a_check_tells_what_becomes_of_encoding_and_pictures() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = serve(&runtime, |body| {
        let length = body["input"].as_str().unwrap().len();
        json!({"data": [{"index": 0, "embedding": [1.0, length]}]})
    });
    let keys = format!(
        "kind = \"embeddings\"\ninput = \"data-uri\"\nencoding = \"base64\"\nurl = \"{url}\""
    );
    let output = harvest(pictures(&keys).path(), &["check", "harvest.toml"]);
    let text = shown(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for line in [
        "encoding    m: float, although base64 was asked for",
        "pictures    looked at: another picture has another vector",
    ] {
        assert!(text.contains(&format!("\n{line}\n")), "{text}");
    }

    // A server of a model of text, which leaves the picture out of the prompt.
    let url = serve(&runtime, |_| {
        let message = json!({"role": "assistant", "content": "I see a picture."});
        json!({
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 12, "completion_tokens": 5},
        })
    });
    let chat = format!("kind = \"chat\"\nurl = \"{url}\"");
    insta::assert_snapshot!(show(pictures(&chat).path(), &["check", "harvest.toml"]), @r#"
    status 1
    --- stdout
    --- stderr
    error: teacher: the server of `m` takes pictures and does not look at them: a prompt has 12 tokens with one and without
    hint: it answers to text: leave pictures out of the configuration, or serve a model that sees them (vLLM; llama-server with --mmproj)
    "#);

    // The budget holds for the check, too: one request is the row's, and there is none for what the picture does.
    let folder = pictures(&chat);
    let config = std::fs::read_to_string(folder.path().join("harvest.toml")).unwrap();
    let limited = format!("{config}[budget]\nrequests = 1\n");
    std::fs::write(folder.path().join("harvest.toml"), limited).unwrap();
    let text = show(folder.path(), &["check", "harvest.toml"]);
    assert!(
        text.contains("unknown whether they are looked at: the budget does not reach"),
        "{text}"
    );
}

/// A reply that counts so many tokens of a prompt with a picture.
fn said(body: &serde_json::Value, of_a_picture: u32) -> serde_json::Value {
    let has_picture = body["messages"][0]["content"].is_array();
    let message = json!({"role": "assistant", "content": "I see a picture."});
    let tokens = if has_picture { of_a_picture } else { 12 };
    json!({
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": tokens, "completion_tokens": 5},
    })
}

#[test]
fn a_run_looks_once_before_it_pays_for_a_second_row() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let rows = |folder: &Path, names: &[&str]| {
        let mut rows = std::fs::File::create(folder.join("train.jsonl")).unwrap();
        for name in names {
            std::fs::copy(folder.join("black.png"), folder.join(name)).unwrap();
            writeln!(rows, "{}", json!({"text": name, "label": "yes"})).unwrap();
        }
    };
    let requests = |text: &str| -> u32 {
        let found = text.lines().find_map(|line| line.strip_prefix("requests"));
        found.unwrap().trim().parse().unwrap()
    };

    let blind = serve(&runtime, |body| said(body, 12));
    let folder = pictures(&format!("kind = \"chat\"\nurl = \"{blind}\""));
    rows(folder.path(), &["a.png", "b.png", "c.png"]);
    let output = harvest(folder.path(), &["run", "harvest.toml"]);
    let text = shown(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("takes pictures and does not look at them"),
        "{text}"
    );
    assert!(!folder.path().join("cache/manifest.json").exists());

    let seeing = serve(&runtime, |body| said(body, 76));
    let folder = pictures(&format!("kind = \"chat\"\nurl = \"{seeing}\""));
    rows(folder.path(), &["a.png", "b.png", "c.png"]);
    let run = || show(folder.path(), &["run", "harvest.toml"]);
    assert_eq!(requests(&run()), 3 + 1);
    rows(folder.path(), &["a.png", "b.png", "c.png", "d.png"]);
    assert_eq!(requests(&run()), 1);
}

#[test]
fn the_first_reply_is_kept_while_pictures_are_looked_at() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let requests = |folder: &Path, end: &str| {
        let output = harvest(folder, &["run", "harvest.toml", "--json"]);
        let told = shown(&output);
        assert!(told.starts_with("status 1") && told.contains(end), "{told}");
        last_event(&output)["requests"].as_u64().unwrap()
    };
    // What looks is refused for lack of money: the first reply is not paid for again.
    let poor = serve_statuses(&runtime, |body| {
        if body["messages"][0]["content"].is_array() {
            (200, said(body, 76))
        } else {
            (402, json!({"error": {"message": "nothing is left"}}))
        }
    });
    let folder = pictures(&format!("kind = \"chat\"\nurl = \"{poor}\""));
    for num_requests in [2, 1] {
        assert_eq!(requests(folder.path(), "nothing is left"), num_requests);
    }
    // A reply that was given blindly is worth nothing.
    let blind = serve(&runtime, |body| said(body, 12));
    let folder = pictures(&format!("kind = \"chat\"\nurl = \"{blind}\""));
    for _ in 0..2 {
        assert_eq!(requests(folder.path(), "does not look at them"), 4);
    }
}

/// The last event of a run.
fn last_event(output: &Output) -> serde_json::Value {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[test]
fn whoever_watches_hears_of_a_run_that_never_gets_a_reply() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let refused = serve_statuses(&runtime, |_| (401, json!({"error": "who are you"})));
    let failing = serve_statuses(&runtime, |_| (400, json!({"error": "no"})));
    for (url, num_failed) in [(refused, 0), (failing, 3)] {
        let teacher = format!("kind = \"embeddings\"\nmodel = \"m\"\nurl = \"{url}\"");
        let folder = project(&CONFIG.replace("kind = \"sketch\"", &teacher));
        let run = ["run", "harvest.toml", "--json", "--metrics-file", "m.prom"];
        let output = harvest(folder.path(), &run);
        let told = shown(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        let last = last_event(&output);
        assert_eq!(last["event"], "finished", "{told}");
        let rows = ["rows_wanted", "rows_failed", "rows_left"].map(|key| last[key].as_u64());
        assert_eq!(
            rows,
            [Some(3), Some(num_failed), Some(3 - num_failed)],
            "{told}"
        );
        let has = |event: &str| told.contains(&format!("\"event\":\"{event}\""));
        assert_eq!(
            (has("row_failed"), has("stopping")),
            (num_failed > 0, num_failed == 0),
            "{told}"
        );
        let metrics = std::fs::read_to_string(folder.path().join("m.prom")).unwrap();
        let failed = format!("harvest_rows_failed_total {num_failed}\n");
        assert!(metrics.contains(&failed), "{metrics}");
    }
}

#[test]
fn a_file_of_metrics_is_there_after_every_run_and_one_that_cannot_be_is_told_first() {
    let folder = project(CONFIG);
    let run = |file: &str| {
        harvest(
            folder.path(),
            &["run", "harvest.toml", "--metrics-file", file],
        )
    };
    let told = shown(&run("no/such/folder/m.prom"));
    assert!(
        told.starts_with("status 1") && told.contains("m.prom"),
        "{told}"
    );
    for _ in 0..2 {
        let told = shown(&run("m.prom"));
        assert!(told.starts_with("status 0"), "{told}");
        let metrics = std::fs::read_to_string(folder.path().join("m.prom")).unwrap();
        assert!(metrics.contains("harvest_queue_depth 0\n"), "{metrics}");
        std::fs::remove_file(folder.path().join("m.prom")).unwrap();
    }
}

#[test]
fn rows_that_are_copied_are_told_of() {
    let prompt = "kind = \"sketch\"\nprompt = \"The red circle is left of the big square.\"";
    let folder = project(&CONFIG.replace("kind = \"sketch\"", prompt));
    let output = harvest(folder.path(), &["run", "harvest.toml", "--json"]);
    let told = shown(&output);
    assert_eq!(last_event(&output)["rows_committed"], 3, "{told}");
    let committed = told
        .lines()
        .filter(|line| line.contains("\"event\":\"committed\""));
    let rows = committed.map(|line| {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        event["rows"].as_u64().unwrap()
    });
    assert_eq!(rows.sum::<u64>(), 3, "{told}");
}

#[test]
fn too_many_failed_rows_are_for_the_user_to_mend() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = serve_statuses(&runtime, |body| {
        let number: usize = body["input"].as_str().unwrap()[4..].parse().unwrap();
        match number % 2 {
            0 => (200, json!({"data": [{"index": 0, "embedding": [1.0]}]})),
            _ => (400, json!({"error": "no"})),
        }
    });
    let teacher = format!("kind = \"embeddings\"\nmodel = \"m\"\nbatch = 1\nurl = \"{url}\"");
    let config = CONFIG.replace("kind = \"sketch\"", &teacher);
    let folder = project(&format!("{config}[run]\nmax_failure_share = 0.1\n"));
    let row = |number| json!({"text": format!("row {number}"), "label": "yes"}).to_string() + "\n";
    std::fs::write(
        folder.path().join("train.jsonl"),
        (0..300).map(row).collect::<String>(),
    )
    .unwrap();
    let told = show(folder.path(), &["run", "harvest.toml"]);
    assert!(told.starts_with("status 1"), "{told}");
    assert!(
        told.contains("a larger share than `run.max_failure_share` allows"),
        "{told}"
    );
}

#[test]
fn a_check_looks_at_each_of_several_teachers_and_at_encoders() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let blind = serve(&runtime, |body| {
        assert!(body["input"].as_str().unwrap().starts_with("data:image/"));
        json!({"data": [{"index": 0, "embedding": [1.0, 2.0]}]})
    });
    let seeing = serve(&runtime, |body| {
        let parts = body["messages"][0]["content"].as_array();
        let message = json!({"role": "assistant", "content": "black"});
        json!({
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": if parts.is_some() { 76 } else { 12 }, "completion_tokens": 1},
        })
    });
    let painter = serve(&runtime, |_| {
        let mut picture = std::io::Cursor::new(Vec::new());
        let black = image::RgbImage::new(2, 2);
        black
            .write_to(&mut picture, image::ImageFormat::Png)
            .unwrap();
        json!({"data": [{"b64_json": BASE64.encode(picture.into_inner())}]})
    });
    let common = "model = \"m\"\nimage_field = \"text\"";
    let chat = format!("[teachers.chat]\nkind = \"chat\"\nurl = \"{seeing}\"\n{common}\n");
    let drawing = "[teachers.drawing]\nkind = \"sketch\"\nprompt = \"The red circle is left of the big square.\"\n";
    let folder = pictures(&chat);
    let configure = |teachers: &str| {
        let config = CONFIG.replace("[teacher]\nkind = \"sketch\"\n", teachers);
        std::fs::write(folder.path().join("harvest.toml"), config).unwrap();
    };
    configure(&format!("{chat}{drawing}"));
    let text = show(folder.path(), &["check", "harvest.toml"]);
    assert!(
        text.contains("\npictures    chat: looked at: one takes 64 tokens\n"),
        "{text}"
    );

    let embed = format!("kind = \"embeddings\"\nurl = \"{blind}\"\ninput = \"data-uri\"");
    configure(&format!("{chat}[teachers.clip]\n{embed}\n{common}\n"));
    let text = show(folder.path(), &["check", "harvest.toml"]);
    let refusal = "does not look at them: two different ones have the same vector";
    assert!(text.contains(refusal), "{text}");

    configure(&format!(
        "[teacher]\nkind = \"images\"\napi = \"openai\"\nurl = \"{painter}\"\nmodel = \"painter\"\n\
         [teacher.encoder]\nmodel = \"m\"\n{embed}\n"
    ));
    let text = show(folder.path(), &["check", "harvest.toml"]);
    assert!(text.contains(refusal), "{text}");
}

/// The number at the start of a line of the summary.
fn number(text: &str, name: &str) -> f64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name} ")));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    let value = line.split_whitespace().next().unwrap();
    value
        .parse()
        .unwrap_or_else(|_| panic!("{name} is no number in {text}"))
}

/// A server of everything that the test of projections asks, by what a request has.
fn any_server(body: &serde_json::Value) -> serde_json::Value {
    if body["prompt"].is_string() {
        let mut picture = std::io::Cursor::new(Vec::new());
        let black = image::RgbImage::new(2, 2);
        black
            .write_to(&mut picture, image::ImageFormat::Png)
            .unwrap();
        return json!({"data": [{"b64_json": BASE64.encode(picture.into_inner())}]});
    }
    if body["messages"].is_array() {
        let message = json!({"role": "assistant", "content": "so"});
        return json!({
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 500},
        });
    }
    let inputs = match &body["input"] {
        serde_json::Value::Array(inputs) => inputs.clone(),
        one => vec![one.clone()],
    };
    let vector = |(index, input): (usize, &serde_json::Value)| {
        let sum: u32 = input.as_str().unwrap().bytes().map(u32::from).sum();
        json!({"index": index, "embedding": [1.0, sum]})
    };
    let vectors: Vec<_> = inputs.iter().enumerate().map(vector).collect();
    let num_tokens = 100 * inputs.len();
    json!({"data": vectors, "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens}})
}

#[test]
fn a_check_projects_what_a_run_sends_and_spends() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = serve(&runtime, any_server);
    let server = format!("url = \"{url}\"\nmodel = \"m\"\n");
    let price =
        "price = { input_per_million = 100.0, output_per_million = 200.0, per_request = 1.0 }\n";
    let embeddings = format!("kind = \"embeddings\"\n{server}{price}");
    let chat = format!("kind = \"chat\"\n{server}{price}");
    // Its server counts no tokens.
    let images =
        format!("kind = \"images\"\napi = \"openai\"\n{server}price = {{ per_request = 2.0 }}\n");
    let num_rows = 30;
    for (teachers, num_requests) in [
        (format!("[teacher]\n{chat}"), 30),
        // The first row of a cache goes alone.
        (format!("[teacher]\n{embeddings}batch = 10\n"), 1 + 3),
        // Two texts of 6 bytes.
        (
            format!("[teacher]\n{embeddings}batch_tokens = 13\n"),
            1 + 15,
        ),
        (
            format!("[teachers.a]\n{embeddings}batch = 10\n[teachers.b]\n{embeddings}batch = 10\n"),
            2 * (1 + 3),
        ),
        (
            format!("[teachers.a]\n{chat}[teachers.b]\n{embeddings}"),
            60,
        ),
        (
            format!("[teacher]\n{images}[teacher.encoder]\nkind = \"builtin\"\n"),
            30,
        ),
        // What is found out about pictures takes two requests.
        (
            format!("[teacher]\n{images}[teacher.encoder]\n{embeddings}input = \"data-uri\"\n"),
            60 + 2,
        ),
    ] {
        let folder = project(&CONFIG.replace("[teacher]\nkind = \"sketch\"\n", &teachers));
        let rows = (10..10 + num_rows).map(|row| {
            format!(
                "{}\n",
                json!({"text": format!("row {row}"), "label": "yes"})
            )
        });
        std::fs::write(folder.path().join("train.jsonl"), rows.collect::<String>()).unwrap();
        let check = show(folder.path(), &["check", "harvest.toml"]);
        let run = show(folder.path(), &["run", "harvest.toml"]);
        assert!(
            check.contains(&format!(" for {num_rows} rows\n")),
            "{check}"
        );
        for (name, tolerance) in [("requests", 0.0), ("cost", 0.006)] {
            let [projected, taken] = [number(&check, name), number(&run, name)];
            assert!(
                (projected - taken).abs() <= tolerance,
                "{teachers}\n{check}\n{run}"
            );
        }
        let is_as_told = run.contains(&format!("\nrequests   {num_requests}\n"));
        assert!(is_as_told, "{teachers}\n{run}");
    }
}

#[test]
fn a_check_says_why_a_cost_is_unknown_and_asks_once_what_is_lacking() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = serve(&runtime, |_| {
        ASKED.fetch_add(1, Ordering::SeqCst);
        let message = json!({"role": "assistant", "content": "so"});
        json!({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
    });
    let chat = format!("kind = \"chat\"\nurl = \"{url}\"\nmodel = \"m\"\n");
    for (more, cost) in [
        ("", "unknown: set `teacher.price`"),
        (
            "price = { input_per_million = 1.0 }\n",
            "unknown: `price` is of tokens, and the server counts none",
        ),
        ("price = { per_request = 0.0 }\n", "0.00"),
    ] {
        let folder = project(&CONFIG.replace("kind = \"sketch\"\n", &format!("{chat}{more}")));
        let text = show(folder.path(), &["check", "harvest.toml"]);
        assert!(
            text.lines().any(|line| line
                .strip_prefix("cost")
                .is_some_and(|told| told.trim() == cost)),
            "{text}"
        );
    }
    ASKED.store(0, Ordering::SeqCst);
    let lacking = format!("{chat}signals = [\"logprobs\"]\n");
    let folder = project(&CONFIG.replace("kind = \"sketch\"\n", &lacking));
    let text = show(folder.path(), &["check", "harvest.toml", "--sample", "3"]);
    assert!(text.starts_with("status 1\n"), "{text}");
    assert_eq!(ASKED.load(Ordering::SeqCst), 1, "{text}");
}

#[test]
fn a_budget_whose_ledger_is_lost_says_so() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = serve(&runtime, any_server);
    let teacher = format!("kind = \"embeddings\"\nurl = \"{url}\"\nmodel = \"m\"\n");
    let config = CONFIG.replace("kind = \"sketch\"\n", &teacher) + "[budget]\nrequests = 9\n";
    let folder = project(&config);
    let run = || show(folder.path(), &["run", "harvest.toml"]);
    for _ in 0..2 {
        let text = run();
        assert!(!text.contains("counts from zero"), "{text}");
    }
    std::fs::remove_file(folder.path().join("cache/budget.ledger")).unwrap();
    let text = run();
    assert!(text.contains("[budget] counts from zero"), "{text}");
    assert!(!run().contains("counts from zero"));
}

#[test]
fn a_replay_of_a_teacher_of_another_width_is_no_success() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = serve(&runtime, any_server);
    let wide = serve(
        &runtime,
        |_| json!({"data": [{"index": 0, "embedding": [1.0, 2.0, 3.0]}]}),
    );
    let configure = |url: &str, budget: &str| {
        let teacher = format!("kind = \"embeddings\"\nurl = \"{url}\"\nmodel = \"m\"\n");
        CONFIG.replace("kind = \"sketch\"\n", &teacher) + budget
    };
    let folder = project(&configure(&url, ""));
    let path = folder.path().join("harvest.toml");
    let replay = || show(folder.path(), &["verify", "harvest.toml", "--replay", "3"]);
    assert!(show(folder.path(), &["run", "harvest.toml"]).starts_with("status 0\n"));
    let same = replay();
    assert!(same.starts_with("status 0\n"), "{same}");
    std::fs::write(&path, configure(&wide, "")).unwrap();
    let other = replay();
    assert!(other.starts_with("status 1\n"), "{other}");
    for told in ["does not fit the cache", "outside the noise floor"] {
        assert!(other.contains(told), "{other}");
    }
    // What the budget does not reach for is not asked, and the rest is told.
    std::fs::write(&path, configure(&url, "[budget]\nrequests = 5\n")).unwrap();
    let refused = replay();
    assert!(refused.starts_with("status 1\n"), "{refused}");
    for told in ["\nrows ", "\nproblems ", "and this takes 6"] {
        assert!(refused.contains(told), "{refused}");
    }
}

#[test]
fn a_program_is_not_started_twice_to_see_whether_it_looks_at_pictures() {
    let folder = pictures(
        "kind = \"command\"\ncommand = [\"sh\", \"teacher.sh\"]\n\
         signals = { said = { kind = \"text\", meaning = \"a\" } }",
    );
    let script = r#"
echo started >> starts
echo '{"armada": 1}'
while read -r line; do
    id=${line#*\"id\":\"}
    printf '{"id":"%s","draw":0,"signals":{"said":"so"},"provenance":{"tokens_in":5}}\n' "${id%%\"*}"
done
"#;
    std::fs::write(folder.path().join("teacher.sh"), script).unwrap();
    for (number, command) in ["check", "run"].into_iter().enumerate() {
        let text = show(folder.path(), &[command, "harvest.toml"]);
        assert!(text.starts_with("status 0\n"), "{text}");
        let starts = std::fs::read_to_string(folder.path().join("starts")).unwrap();
        assert_eq!(starts.lines().count(), number + 1, "{text}");
    }
}

#[test]
fn a_cache_is_made_frozen_grown_and_frozen_again() {
    let folder = project(CONFIG);
    let folder = folder.path();
    insta::assert_snapshot!(show(folder, &["run", "harvest.toml"]), @r#"
    status 0
    --- stdout
    rows       3
    recovered  0
    committed  3
    copied     0
    failed     0
    earlier    0
    left       0
    requests   0
    --- stderr
    "#);
    assert!(
        shown(&harvest(folder, &["check", "harvest.toml"]))
            .contains("\nrequests    0 for 0 rows\n")
    );
    let freeze = || -> String {
        let output = harvest(folder, &["freeze", "harvest.toml"]);
        let stdout = String::from_utf8(output.stdout).unwrap();
        stdout
            .lines()
            .find_map(|line| line.strip_prefix("digest  "))
            .unwrap()
            .to_owned()
    };
    let first = freeze();
    let manifest = std::fs::read(folder.join("cache/manifest.json")).unwrap();
    assert_eq!(
        harvest(folder, &["run", "harvest.toml"]).status.code(),
        Some(0)
    );
    assert_eq!(freeze(), first);
    assert_eq!(
        std::fs::read(folder.join("cache/manifest.json")).unwrap(),
        manifest
    );

    write_rows(folder, 4);
    insta::assert_snapshot!(show(folder, &["freeze", "harvest.toml"]).replace(&*folder.to_string_lossy(), ""), @r#"
    status 1
    --- stdout
    --- stderr
    error: cache `cache` is not fit to be frozen: 1 of 4 rows are missing: 676d3d2e22cb54321375939dbe999887 draw 0 (The yellow circle is left of the big square.)
    hint: `harvest run` asks for them; --allow-missing freezes without them
    "#);
    assert_eq!(
        harvest(folder, &["run", "harvest.toml"]).status.code(),
        Some(0)
    );
    assert!(show(folder, &["status", "cache"]).contains("\nstate       open\n"));
    let second = freeze();
    assert_ne!(first, second);
    for digest in [first, second] {
        Manifest::open_frozen(&folder.join("cache"), &digest.parse().unwrap()).unwrap();
    }
    insta::assert_snapshot!(show(folder, &["verify", "harvest.toml"]).replace(&freeze(), "DIGEST"), @r#"
    status 0
    --- stdout
    rows        4
    failed      0
    journalled  0
    shards      3
    missing     0
    extra       0
    problems    0
    digest      DIGEST
    --- stderr
    "#);
}

#[test]
fn a_flipped_byte_is_found_and_the_cache_is_not_frozen() {
    let folder = project(CONFIG);
    harvest(folder.path(), &["run", "harvest.toml"]);
    let shards = schemas::shard::list_shards(&folder.path().join("cache")).unwrap();
    let mut bytes = std::fs::read(&shards[0]).unwrap();
    let middle = bytes.len() / 4;
    bytes[middle] ^= 1;
    std::fs::write(&shards[0], bytes).unwrap();
    let verify = show(folder.path(), &["verify", "cache"]);
    assert!(
        verify.starts_with("status 1\n") && verify.contains("is corrupt"),
        "{verify}"
    );
    let freeze = show(folder.path(), &["freeze", "cache", "--allow-missing"]);
    assert!(
        freeze.starts_with("status 1\n") && freeze.contains("is corrupt"),
        "{freeze}"
    );
}

#[test]
fn a_damaged_shard_is_removed_and_its_rows_are_asked_for() {
    let folder = project(CONFIG);
    let folder = folder.path();
    harvest(folder, &["run", "harvest.toml"]);
    let shards = schemas::shard::list_shards(&folder.join("cache")).unwrap();
    let mut bytes = std::fs::read(&shards[0]).unwrap();
    let middle = bytes.len() / 4;
    bytes[middle] ^= 1;
    std::fs::write(&shards[0], bytes).unwrap();
    let name = shards[0].file_name().unwrap().to_string_lossy();
    let hint = format!("hint: remove `cache/{name}` and run again: its rows are asked for\n");
    for verb in ["verify", "freeze"] {
        let refused = show(folder, &[verb, "harvest.toml"]);
        assert!(
            refused.starts_with("status 1\n")
                && refused.contains("rows are missing")
                && refused.ends_with(&hint),
            "{refused}"
        );
    }
    std::fs::remove_file(&shards[0]).unwrap();
    let run = show(folder, &["run", "harvest.toml"]);
    assert!(run.contains("\ncommitted  2\n"), "{run}");
    for verb in ["verify", "freeze"] {
        let done = show(folder, &[verb, "harvest.toml"]);
        assert!(done.starts_with("status 0\n"), "{done}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_an_error() {
    let folder = project(CONFIG);
    for arguments in [
        &["run", "harvest.toml"][..],
        &["status", "cache"],
        &["--help"],
    ] {
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_harvest"));
        let command = command.current_dir(folder.path()).args(arguments);
        let text = shown(
            &command
                .stdout(full)
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
                .wait_with_output()
                .unwrap(),
        );
        assert!(
            text.starts_with("status 1\n") && text.contains("cannot write to `standard output`"),
            "{text}"
        );
    }
}

#[test]
fn bad_rows_stop_a_run_unless_they_are_allowed() {
    let folder = project(CONFIG);
    let path = folder.path().join("train.jsonl");
    let mut rows = std::fs::read_to_string(&path).unwrap();
    rows.push_str("{\"label\": \"yes\"}\n");
    std::fs::write(&path, rows).unwrap();
    let refused = show(folder.path(), &["run", "harvest.toml"]);
    assert!(
        refused.starts_with("status 1\n") && refused.contains("train.jsonl:4"),
        "{refused}"
    );
    let skipped = show(
        folder.path(),
        &["run", "harvest.toml", "--skip-bad-rows", "1"],
    );
    assert!(
        skipped.starts_with("status 0\n") && skipped.contains("skipped 1 bad rows"),
        "{skipped}"
    );
}

#[test]
fn rows_that_fail_are_shown_and_the_status_says_so() {
    let folder = project(CONFIG);
    let path = folder.path().join("train.jsonl");
    let rows = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        &path,
        rows + "{\"text\": \"Nobody draws this.\", \"label\": \"yes\"}\n",
    )
    .unwrap();
    let shown = show(folder.path(), &["run", "harvest.toml"]);
    assert!(
        shown.starts_with("status 1\n") && shown.contains("text: Nobody draws this."),
        "{shown}"
    );
    assert!(folder.path().join("cache/failures.parquet").exists());
    assert!(show(folder.path(), &["freeze", "harvest.toml"]).contains("1 rows failed"));
    assert!(
        show(
            folder.path(),
            &["freeze", "harvest.toml", "--allow-missing"]
        )
        .starts_with("status 0\n")
    );
}

/// A file size limit is the full disk that every machine can have.
#[cfg(unix)]
#[test]
fn a_full_disk_is_named_and_costs_nothing() {
    let scenes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/scenes");
    let config = CONFIG
        .replace("path = \".\"", &format!("path = \"{}\"", scenes.display()))
        .replace("rows_per_shard = 2\n", "");
    let folder = project(&config);
    let limited = format!(
        "trap '' XFSZ; ulimit -f 512; exec '{}' run harvest.toml",
        env!("CARGO_BIN_EXE_harvest")
    );
    let output = Command::new("sh")
        .arg("-c")
        .arg(limited)
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text = shown(&output);
    assert!(
        text.starts_with("status 1\n")
            && text.contains("part-000000.journal")
            && text.contains("File too large"),
        "{text}"
    );
    let text = show(folder.path(), &["run", "harvest.toml"]);
    assert!(
        text.starts_with("status 0\n") && text.contains("failed     0"),
        "{text}"
    );
    let number = |name: &str| -> u64 {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    };
    assert!(number("recovered") > 10, "{text}");
    assert_eq!(number("recovered") + number("committed"), number("rows"));
}

/// A server that refuses every key and repeats it.
fn tell_tale() -> String {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            while !request.windows(2).any(|pair| pair == b"}}") && !request.ends_with(b"}") {
                let num_read = stream.read(&mut buffer).unwrap();
                request.extend(&buffer[..num_read]);
            }
            let text = String::from_utf8_lossy(&request);
            let header = text
                .lines()
                .find(|line| line.to_lowercase().starts_with("authorization:"))
                .unwrap_or("none");
            let body = format!("{{\"error\": {{\"message\": \"you sent {header}\"}}}}");
            write!(stream, "HTTP/1.1 401 Unauthorized\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()).unwrap();
        }
    });
    url
}

#[test]
fn a_secret_is_sent_and_never_shown() {
    let url = tell_tale();
    let teacher = format!(
        "kind = \"embeddings\"\nurl = \"{url}\"\nmodel = \"m\"\napi_key_env = \"HARVEST_TEST_KEY\"\n"
    );
    let folder = project(&CONFIG.replace("kind = \"sketch\"\n", &teacher));
    let unset = show(folder.path(), &["run", "harvest.toml"]);
    assert!(
        unset.starts_with("status 1\n")
            && unset.contains("the environment variable HARVEST_TEST_KEY is not set"),
        "{unset}"
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_harvest"));
    command
        .current_dir(folder.path())
        .args(["run", "harvest.toml"]);
    command
        .env("HARVEST_TEST_KEY", "sk-TOPSECRET")
        .env("RUST_LOG", "trace");
    let text = shown(&command.output().unwrap());
    assert!(
        text.starts_with("status 1\n")
            && text
                .to_lowercase()
                .contains("you sent authorization: bearer redacted"),
        "{text}"
    );
    assert!(!text.contains("TOPSECRET"), "{text}");
}

#[test]
fn an_address_for_scrapers_that_cannot_be_had_is_told_before_anything_is_done() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = project(CONFIG);
    let run = ["run", "harvest.toml", "--metrics-listen"];
    let refused = harvest(folder.path(), &[&run[..], &[&address]].concat());
    let told = shown(&refused);
    assert_eq!(refused.status.code(), Some(1), "{told}");
    assert!(
        told.contains(&format!("cannot listen at `{address}`")),
        "{told}"
    );
    assert!(told.contains("hint: "), "{told}");
    assert!(!folder.path().join("cache").exists());

    let served = harvest(folder.path(), &[&run[..], &["127.0.0.1:0"]].concat());
    let told = shown(&served);
    assert_eq!(served.status.code(), Some(0), "{told}");
    assert!(told.contains("metrics are at http://127.0.0.1:"), "{told}");
}

/// The settings are found by the name of a symbol: where that is wrong, nothing else tells.
#[cfg(target_os = "linux")]
#[test]
fn the_allocator_has_its_settings() {
    let output = Command::new(env!("CARGO_BIN_EXE_harvest"))
        .arg("--version")
        .env("_RJEM_MALLOC_CONF", "stats_print:true")
        .output()
        .unwrap();
    let told = shown(&output);
    for setting in ["opt.narenas: 2", "opt.dirty_decay_ms: 10 "] {
        assert!(told.contains(setting), "{told}");
    }
}
