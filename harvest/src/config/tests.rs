use super::*;

/// The keys of a section, as serde lists them when it refuses an unknown one.
fn keys<T: serde::de::DeserializeOwned>() -> Vec<String> {
    let error = toml::from_str::<T>("no_such_key = 1").err().unwrap();
    let (_, expected) = error.message().split_once("expected ").unwrap();
    expected
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn keys_of_every_teacher_are_taken_out_by_name() {
    assert_eq!(keys::<CommonConfig>(), CommonConfig::KEYS);
    assert_eq!(keys::<ServerConfig>(), ServerConfig::KEYS);
}

#[test]
fn every_key_is_in_the_reference_under_its_section() {
    let reference = include_str!("../../../docs/harvest.md");
    for (heading, keys) in [
        ("### `[dataset]`", keys::<DatasetConfig>()),
        (
            "### `[teacher]`",
            [keys::<CommonConfig>(), keys::<ServerConfig>()].concat(),
        ),
        ("### `[budget]`", keys::<BudgetConfig>()),
        ("### `[cache]`", keys::<CacheConfig>()),
        ("### `[run]`", keys::<RunConfig>()),
        ("### `[import]` with `kind = \"npy\"`", keys::<NpyConfig>()),
        (
            "### `[import]` with `kind = \"parquet\"`",
            keys::<ParquetConfig>(),
        ),
    ] {
        assert!(keys.len() > 2, "{heading}: {keys:?}");
        let section = reference
            .split_once(heading)
            .unwrap_or_else(|| panic!("{heading} is missing"))
            .1;
        let section = section.split("\n### ").next().unwrap();
        let documented: Vec<&str> = section
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .collect();
        for key in &keys {
            assert!(
                documented.contains(&key.as_str()),
                "{heading} lacks `{key}`"
            );
        }
        for key in documented {
            assert!(
                keys.iter().any(|known| known == key),
                "{heading} describes `{key}`, which is no key"
            );
        }
    }
}

fn read(text: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.toml");
    std::fs::write(&path, text).unwrap();
    Config::read(&path).map_err(|error| {
        error
            .to_string()
            .replace(&format!("{}/", folder.path().display()), "")
    })
}

const DATASET_AND_CACHE: &str = "[dataset]\npath = \".\"\n[cache]\npath = \"c\"\n";

#[test]
fn defaults_are_those_of_the_reference() {
    let config = read(&format!(
        "{DATASET_AND_CACHE}[teacher]\nkind = \"sketch\"\n"
    ))
    .unwrap();
    assert_eq!(
        (config.cache.dtype, config.cache.rows_per_shard.get()),
        (FloatType::F16, 10_000)
    );
    let Source::Teachers(teachers, run) = &config.source else {
        panic!("it has a teacher")
    };
    let [teacher] = teachers.as_slice() else {
        panic!("it has one teacher")
    };
    assert!(teacher.common.prompt.is_none() && run.splits.is_none());
    assert_eq!(
        (run.concurrency.get(), run.draws.get(), run.max_tries.get()),
        (8, 1, 5)
    );
    assert_eq!(config.cache.path, "c");
}

#[test]
fn refusals_name_line_and_key() {
    for (section, refusal) in [
        (
            "[teacher]\nkind = \"sketch\"\nwidth = 3\n",
            "a.toml:7: `teacher.width`: unknown field `width`, expected one of `kind`, `prompt`, `image_field`, `image_hosts`, `price`, `license`, `terms`, `image`",
        ),
        (
            "[teacher]\nkind = \"sketch\"\n[budget]\ncost = -0.5\n",
            "a.toml:8: `budget.cost`: expected an amount that is finite and not negative",
        ),
        (
            "[teacher]\nkind = \"sketch\"\n[run]\nmax_failure_share = 1.5\n",
            "a.toml:8: `run.max_failure_share`: expected a share above 0 and up to 1",
        ),
        (
            "[teacher]\nkind = \"oracle\"\n",
            "a.toml:6: `teacher.kind`: unknown variant, expected one of `anthropic`, `batch`, `chat`, `command`, `completions`, `embeddings`, `gemini`, `images`, `ollama`, `sketch`, `tei`",
        ),
        (
            "[teacher]\nkind = \"sketch\"\n[run]\ndraws = 0\n",
            "a.toml:8: `run.draws`: invalid value, expected a nonzero u32",
        ),
        (
            "[teacher]\nkind = \"sketch\"\n[run]\ndraws = 10001\n",
            "a.toml:8: `run.draws`: expected a number from 1 to 10000",
        ),
        (
            "[teacher]\nkind = \"sketch\"\n[run]\nmax_tries = 429496731\n",
            "a.toml:8: `run.max_tries`: expected a number from 1 to 1000",
        ),
        (
            "[teacher]\nkind = \"embeddings\"\nurl = \"ftp://a\"\nmodel = \"m\"\n",
            "a.toml:7: `teacher.url`: expected an address that starts with http:// or https://",
        ),
        (
            "[teacher]\nkind = \"embeddings\"\nurl = \"http://a:b@c/v1\"\nmodel = \"m\"\n",
            "a.toml:7: `teacher.url`: an address carries no user or password: name a variable in `api_key_env`",
        ),
        (
            "[teacher]\nkind = \"embeddings\"\nurl = \"http://a/v1?key=b\"\nmodel = \"m\"\n",
            "a.toml:7: `teacher.url`: an address carries no query or fragment: name a variable for a key in `api_key_env`",
        ),
        (
            "[teacher]\nkind = \"embeddings\"\nurl = \"http://a\"\n",
            "a.toml:5: `teacher`: missing field `model`",
        ),
        (
            "[import]\nkind = \"npy\"\npath = \"f\"\nmodel = \"m\"\npattern = \"../{index}.npy\"\n",
            "a.toml:9: `import.pattern`: the pattern leads out of the folder",
        ),
        (
            "[import]\nkind = \"npy\"\npath = \"f\"\nmodel = \"m\"\n[run]\n",
            "a.toml:9: `run`: unknown section or key `run`",
        ),
        (
            "",
            "a.toml:1: `dataset`: it has none of [teacher], [teachers] and [import]",
        ),
    ] {
        assert_eq!(
            read(&format!("{DATASET_AND_CACHE}{section}")).unwrap_err(),
            refusal
        );
    }
}

#[test]
fn a_limit_of_money_needs_a_price_of_every_server() {
    let server = "url = \"http://a\"\nmodel = \"m\"\n";
    let budget = "[budget]\nrequests = 5\ncost = 1.5\n";
    let with = |teachers: &str| read(&format!("{DATASET_AND_CACHE}{budget}{teachers}"));
    let free = "price = { per_request = 0.0 }\n";
    let images = format!(
        "[teacher]\nkind = \"images\"\napi = \"openai\"\n{server}{free}[teacher.encoder]\n"
    );
    let embeddings = format!("kind = \"embeddings\"\n{server}");
    for (teachers, unpriced) in [
        (format!("[teacher]\n{embeddings}"), "[teacher]"),
        (
            format!("[teachers.a]\n{embeddings}{free}[teachers.b]\n{embeddings}"),
            "[teachers.b]",
        ),
        (
            format!("{images}{embeddings}input = \"data-uri\"\n"),
            "[teacher.encoder]",
        ),
    ] {
        let refusal = with(&teachers).unwrap_err();
        let start = format!("a.toml:7: `budget.cost`: {unpriced} has no price");
        assert!(refusal.starts_with(&start), "{refusal}");
        let text = format!("{DATASET_AND_CACHE}[budget]\nrequests = 5\n{teachers}");
        assert!(read(&text).is_ok(), "{text}");
    }
    for teachers in [
        format!("[teacher]\n{embeddings}{free}"),
        format!("[teachers.a]\nkind = \"sketch\"\n[teachers.b]\n{embeddings}{free}"),
        format!("{images}kind = \"builtin\"\n"),
        format!("{images}{embeddings}{free}input = \"data-uri\"\n"),
    ] {
        assert!(with(&teachers).is_ok(), "{:?}", with(&teachers).err());
    }
}

#[test]
fn a_secret_in_the_wrong_place_is_never_repeated() {
    for key in [
        "api_key = \"sk-SECRET\"",
        "api_key_env = \"sk-SECRET\"",
        "timeout_seconds = \"sk-SECRET\"",
        "dimensions = \"sk-SECRET\"",
        "encoding = \"sk-SECRET\"",
        "encoding = \"sk-SECRET`, expected SECRET\"",
        "prompt = 5550123\nencoding = \"sk-SECRET\"",
        "[run]\ndraws = -5550123",
        "[run]\nsplits = \"sk-SECRET\"",
    ] {
        let section =
            format!("[teacher]\nkind = \"embeddings\"\nurl = \"http://a\"\nmodel = \"m\"\n{key}\n");
        let refusal = read(&format!("{DATASET_AND_CACHE}{section}")).unwrap_err();
        assert!(
            !refusal.contains("SECRET") && !refusal.contains("555"),
            "{refusal}"
        );
    }
    for address in [
        "http://a/v1?key=sk-SECRET",
        "http://a/v1#sk-SECRET",
        "sk-SECRET",
    ] {
        let section =
            format!("[teacher]\nkind = \"embeddings\"\nurl = \"{address}\"\nmodel = \"m\"\n");
        let refusal = read(&format!("{DATASET_AND_CACHE}{section}")).unwrap_err();
        assert!(!refusal.contains("SECRET"), "{refusal}");
    }
}

#[test]
fn patterns_name_files() {
    let pattern = FilePattern::try_from("{split}_{index}.npy".to_owned()).unwrap();
    assert_eq!(
        pattern.file(&Split::train(), 7),
        PathBuf::from("train_7.npy")
    );
    assert!(FilePattern::try_from("{split}.npy".to_owned()).is_err());
}

#[test]
fn what_stands_before_an_equals_sign_in_a_value_is_no_key() {
    let secret = "c2VjcmV0";
    for text in [
        format!("[teacher]\nsignals = [\n  \"{secret}==\" 1\n]\n"),
        format!("[teacher api_key = \"{secret}\"\n"),
    ] {
        let error = parse(Path::new("a.toml"), &text).unwrap_err();
        let told = format!("{error} {error:?}");
        assert!(!told.contains(secret), "{told}");
    }
}
