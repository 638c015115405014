//! Runs that train adapters, in little memory.

use crate::cli::{done, last_checkpoint, run, stderr};
use crate::support::World;
use safetensors::SafeTensors;
use serde_json::Value;

const TABLES: &str = r#"[student]
path = "base"
max_length = 24
precision = "bf16"
[student.lora]
rank = 2
dropout = 0.2
target_modules = "all-linear"
"#;

/// A world whose student is an exported one, with adapters.
fn world() -> World {
    let world = World::new();
    done(&world, &["train"]);
    done(&world, &["export", world.path("base").to_str().unwrap()]);
    let text = std::fs::read_to_string(world.config()).unwrap();
    let (before, rest) = text.split_once("[student]").unwrap();
    let (_, after) = rest.split_once("[aligner]").unwrap();
    world.write_config(&format!("{before}{TABLES}[aligner]{after}"));
    world.replace("path = \"out\"", "path = \"adapted\"");
    world.replace(
        "epochs = 2",
        "epochs = 2\nactivation_checkpointing = true\noptimizer_state = \"bf16\"",
    );
    world
}

#[test]
fn a_stopped_run_with_adapters_ends_as_one_that_was_not() {
    let world = world();
    done(&world, &["train"]);
    let whole = last_checkpoint(&world.path("adapted"));
    let folder = world.path("stopped");
    let train = ["train", "--folder", folder.to_str().unwrap()];
    let stopped = run(&world, &[&train[..], &["--stop-after-steps", "6"]].concat());
    assert_eq!(stopped.status.code(), Some(3), "{}", stderr(&stopped));
    done(&world, &train);
    assert_eq!(last_checkpoint(&folder), whole);

    let stored = |file: &str| {
        let (_, bytes) = whole.iter().find(|(name, _)| name == file).unwrap();
        SafeTensors::deserialize(bytes).unwrap()
    };
    // One layer: 6 linear maps with 2 matrices each. The rest is in the base.
    let student = stored("student.safetensors");
    let is_adapter = |name: &str| name.contains(".adapter.");
    let names = student.names();
    assert_eq!(names.iter().filter(|name| is_adapter(name)).count(), 12);
    assert!(
        names
            .iter()
            .all(|name| is_adapter(name) || name.starts_with("heads."))
    );
    for (name, moment) in stored("student_optimizer.safetensors").iter() {
        assert!(is_adapter(name) || name.starts_with("heads."), "{name}");
        if name.contains(".moment_") {
            assert_eq!(moment.dtype(), safetensors::Dtype::BF16, "{name}");
        }
    }
}

#[test]
fn adapters_are_exported_merged_or_alone() {
    let world = world();
    done(&world, &["train"]);
    let [merged, alone] = ["merged", "alone"].map(|name| world.path(name));
    done(&world, &["export", merged.to_str().unwrap()]);
    done(&world, &["export", alone.to_str().unwrap(), "--adapter"]);

    let read = |folder: &str| std::fs::read(world.path(folder).join("model.safetensors")).unwrap();
    let (base, merged) = (read("base"), read("merged"));
    let (base, merged) = (
        SafeTensors::deserialize(&base).unwrap(),
        SafeTensors::deserialize(&merged).unwrap(),
    );
    assert_eq!(sorted(base.names()), sorted(merged.names()));
    let adapted = "bert.encoder.layer.0.output.dense.weight";
    assert_ne!(
        base.tensor(adapted).unwrap().data(),
        merged.tensor(adapted).unwrap().data()
    );
    let frozen = "bert.encoder.layer.0.output.LayerNorm.weight";
    assert_eq!(base.tensor(frozen).unwrap(), merged.tensor(frozen).unwrap());

    let config = std::fs::read(alone.join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["r"], 2);
    assert_eq!(
        config["base_model_name_or_path"],
        world.path("base").canonicalize().unwrap().to_str().unwrap()
    );
    // Again over the first, with a name that holds on other machines.
    let export = ["export", alone.to_str().unwrap(), "--adapter"];
    let named = ["--base-model", "armada/base"];
    done(&world, &[&export[..], &named].concat());
    let config = std::fs::read(alone.join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["base_model_name_or_path"], "armada/base");
    // A whole student has no base model to name.
    let whole = ["export", alone.to_str().unwrap()];
    let output = run(&world, &[&whole[..], &named].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--adapter"), "{}", stderr(&output));
}

fn sorted(mut names: Vec<&str>) -> Vec<&str> {
    names.sort_unstable();
    names
}

#[test]
fn a_student_without_adapters_has_none_to_export() {
    let world = World::new();
    done(&world, &["train"]);
    let output = run(
        &world,
        &["export", world.path("alone").to_str().unwrap(), "--adapter"],
    );
    assert_eq!(output.status.code(), Some(1));
    let expected = "error: student: the student was trained in full and has no adapters\n\
                    hint: export without --adapter\n";
    assert!(stderr(&output).ends_with(expected), "{}", stderr(&output));
}
