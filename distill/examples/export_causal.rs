//! Saves a causal student in each of its forms, for comparison with other implementations.
//!
//! Usage: `export_causal MODEL_DIR TOKENIZER_DIR OUT_DIR`
//!
//! `OUT_DIR` receives the directories `language` (the language model), `backbone` (without head) and `classifier`
//! (three classes, whose weights are the sines of 1, 2, 3 and so on).

use std::error::Error;
use std::fs;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use distill::student::save::{ClassifierHead, HeadOutputs, save_language_model, save_pretrained};
use distill::student::{LanguageModel, TextTokenizer};

const CLASSES: [&str; 3] = ["first", "second", "third"];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, tokenizer, out] = arguments.as_slice() else {
        return Err("usage: export_causal MODEL_DIR TOKENIZER_DIR OUT_DIR".into());
    };
    let device = Device::flex();
    let (model, _) = LanguageModel::from_pretrained(Path::new(model), None, &device)?;
    let backbone = model.backbone();
    let width = backbone.config().architecture().hidden_size();
    let sines: Vec<f32> = (1_u16..)
        .map(|count| f32::from(count).sin())
        .take(3 * width)
        .collect();
    let head = ClassifierHead {
        weight_cd: Tensor::from_data(TensorData::new(sines, [3, width]), &device),
        bias_c: None,
        outputs: HeadOutputs::Classes(CLASSES.map(str::to_owned).to_vec()),
    };
    let max_length = backbone.config().architecture().max_positions();
    let tokenizer = TextTokenizer::from_dir(Path::new(tokenizer), max_length)?;
    let out = Path::new(out);
    fs::create_dir_all(out)?;
    save_language_model(&out.join("language"), &model, &tokenizer)?;
    save_pretrained(&out.join("backbone"), backbone, &tokenizer, None)?;
    save_pretrained(&out.join("classifier"), backbone, &tokenizer, Some(&head))?;
    Ok(())
}
