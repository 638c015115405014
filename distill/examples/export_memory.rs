//! What an export holds in memory: a student is loaded, takes over the weights of a checkpoint and is written.
//!
//! Usage: `export_memory CONFIG.json TOKENIZER_DIR`
//!
//! `CONFIG.json` is that of an encoder, whose weights are drawn. Prints the size of the weights and the most memory that
//! was held beyond what the process held before, in MB (10^6 bytes); pages of mapped files, which the system may take
//! back, are left out. Linux only.

use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use burn::module::Module as _;
use burn::tensor::Device;
use distill::checkpoint::{Best, Checkpoint, Checkpoints, Position, RunIdentity, Which};
use distill::heads::{AlignerConfig, HeadsConfig};
use distill::learner::restore_student;
use distill::model::Student;
use distill::objective::{Preset, TaskKind};
use distill::student::save::{HeadOutputs, save_pretrained};
use distill::student::{Backbone, BackboneConfig, TextTokenizer};

/// Bytes of this process that belong to no file.
fn held() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// What `work` returns, and the most memory held meanwhile beyond that of before.
fn peak_of<T>(work: impl FnOnce() -> T) -> Result<(T, u64), Box<dyn Error>> {
    let before = held().ok_or("this system does not tell a process's memory")?;
    let (most, ended) = (AtomicU64::new(before), AtomicBool::new(false));
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                most.fetch_max(held().unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let result = work();
        ended.store(true, Ordering::Relaxed);
        result
    });
    Ok((result, most.into_inner() - before))
}

fn student(backbone: Backbone, heads: &HeadsConfig, device: &Device) -> Student {
    let width = backbone.config().architecture().hidden_size();
    Student::from_parts(backbone, heads.init_student_heads(width, device))
}

fn write_checkpoint(folder: &Path, student: &Student) -> Result<(), Box<dyn Error>> {
    let identity = RunIdentity {
        variant: "method".to_owned(),
        seed: 1,
        cache: String::new(),
        data: String::new(),
        metric: "accuracy".to_owned(),
        classes: None,
        student: None,
        num_devices: 1,
        config: serde_json::json!({}),
    };
    let best = Best {
        score: None,
        epoch: 1,
        step: 0,
    };
    let files = [("student.safetensors".to_owned(), student.to_safetensors()?)];
    let checkpoint = Checkpoint::new(identity, Position::default(), Some(best), files.into());
    Ok(Checkpoints::of(folder).save(&checkpoint)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, tokenizer] = arguments.as_slice() else {
        return Err("usage: export_memory CONFIG.json TOKENIZER_DIR".into());
    };
    let scratch = tempfile::tempdir()?;
    let (base, exported) = (scratch.path().join("base"), scratch.path().join("exported"));
    let device = Device::flex();
    let task = TaskKind::Classification { num_classes: 2 };
    let heads = AlignerConfig::default().resolve(Preset::Paper, task);
    let config = BackboneConfig::from_file(Path::new(config))?;
    let tokenizer = TextTokenizer::from_dir(Path::new(tokenizer), 16)?;
    let drawn = student(Backbone::initialised(config, &device), &heads, &device);
    let num_bytes = 4 * drawn.num_params();
    save_pretrained(&base, drawn.backbone(), &tokenizer, None)?;
    write_checkpoint(scratch.path(), &drawn)?;
    drop(drawn);

    let (done, peak) = peak_of(|| -> Result<(), Box<dyn Error>> {
        let (backbone, _) = Backbone::from_pretrained(&base, None, &device)?;
        let checkpoint = Checkpoints::of(scratch.path()).open(Which::Best)?;
        let student = restore_student(student(backbone, &heads, &device), &checkpoint)?;
        let names = ["no", "yes"].map(str::to_owned);
        let head = student.classifier(HeadOutputs::Classes(names.into()));
        save_pretrained(&exported, student.backbone(), &tokenizer, Some(&head))?;
        Ok(())
    })?;
    done?;
    writeln!(
        std::io::stdout(),
        "weights {:.0} MB, peak of load, checkpoint and export {:.0} MB",
        num_bytes as f64 / 1e6,
        peak as f64 / 1e6
    )?;
    Ok(())
}
