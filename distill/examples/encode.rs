//! Encodes a batch of ids with a student directory, for comparison with other implementations.
//!
//! Usage: `encode MODEL_DIR BATCH.json OUT.json [EXPORT_DIR MAX_LENGTH]`
//!
//! `BATCH.json` holds `shape: [b, s]` and the flat arrays `token_ids`, `type_ids`,
//! `attention_mask`. `OUT.json` receives the flat arrays `hidden` (b, s, d) and `pooled` (b, d).
//! With `EXPORT_DIR` the student is also saved there together with its tokenizer.

use std::error::Error;
use std::fs;
use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use distill::student::save::save_pretrained;
use distill::student::{Backbone, TextTokenizer, TokenBatch};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Batch {
    shape: [usize; 2],
    token_ids: Vec<i64>,
    type_ids: Vec<i64>,
    attention_mask: Vec<i64>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (model, batch, out, export) = match arguments.as_slice() {
        [model, batch, out] => (model, batch, out, None),
        [model, batch, out, dir, max_length] => (model, batch, out, Some((dir, max_length))),
        _ => {
            return Err(
                "usage: encode MODEL_DIR BATCH.json OUT.json [EXPORT_DIR MAX_LENGTH]".into(),
            );
        }
    };
    let device = Device::flex();
    let (encoder, report) = Backbone::from_pretrained(Path::new(model), None, &device)?;
    let Batch {
        shape,
        token_ids,
        type_ids,
        attention_mask,
    } = serde_json::from_slice(&fs::read(batch)?)?;
    let ids =
        |values| Tensor::<2, Int>::from_data(TensorData::new::<i64, _>(values, shape), &device);
    let output = encoder.forward(&TokenBatch {
        token_ids_bs: ids(token_ids),
        type_ids_bs: ids(type_ids),
        attention_mask_bs: ids(attention_mask),
    });
    let (hidden, pooled) = (output.hidden_bsd.into_data(), output.pooled_bd.into_data());
    let values = json!({
        "hidden": hidden.as_slice::<f32>()?, "pooled": pooled.as_slice::<f32>()?,
        "report": report.to_string(),
    });
    fs::write(out, values.to_string())?;
    if let Some((dir, max_length)) = export {
        let tokenizer = TextTokenizer::from_dir(Path::new(model), max_length.parse()?)?;
        save_pretrained(Path::new(dir), &encoder, &tokenizer, None)?;
    }
    Ok(())
}
