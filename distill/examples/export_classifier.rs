//! Loads a sequence classifier of `transformers` and saves it again, for comparison with other implementations.
//!
//! Usage: `export_classifier MODEL_DIR TOKENIZER_DIR EXPORT_DIR MAX_LENGTH`
//!
//! `MODEL_DIR` holds `model.safetensors` with a head in f32; its classes are called `LABEL_0` and so on.

use std::error::Error;
use std::fs;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use distill::student::save::{ClassifierHead, HeadOutputs, save_pretrained};
use distill::student::{Backbone, TextTokenizer};
use safetensors::SafeTensors;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, tokenizer, target, max_length] = arguments.as_slice() else {
        return Err(
            "usage: export_classifier MODEL_DIR TOKENIZER_DIR EXPORT_DIR MAX_LENGTH".into(),
        );
    };
    let model = Path::new(model);
    let device = Device::flex();
    let (backbone, _) = Backbone::from_pretrained(model, None, &device)?;
    let naming = backbone.config().architecture().naming();
    let classifier = naming
        .classifier
        .as_ref()
        .ok_or("the architecture has no classifier")?;
    let bytes = fs::read(model.join("model.safetensors"))?;
    let stored = SafeTensors::deserialize(&bytes)?;
    let data = |field: &str| -> Result<TensorData, Box<dyn Error>> {
        let view = stored.tensor(&format!("{}.{field}", classifier.head))?;
        let (values, _) = view.data().as_chunks::<4>();
        let values = values.iter().map(|value| f32::from_le_bytes(*value));
        Ok(TensorData::new(
            values.collect::<Vec<_>>(),
            view.shape().to_vec(),
        ))
    };
    let weight_cd = Tensor::<2>::from_data(data("weight")?, &device);
    let [num_classes, _] = weight_cd.dims();
    let labels = (0..num_classes).map(|class| format!("LABEL_{class}"));
    let head = ClassifierHead {
        weight_cd,
        bias_c: Some(Tensor::from_data(data("bias")?, &device)),
        outputs: HeadOutputs::Classes(labels.collect()),
    };
    let tokenizer = TextTokenizer::from_dir(Path::new(tokenizer), max_length.parse()?)?;
    save_pretrained(Path::new(target), &backbone, &tokenizer, Some(&head))?;
    Ok(())
}
