//! A model whose answers never end by themselves: the built-in one's tokenizer and shape with all weights zero, so that every
//! token is as likely as every other and greedy decoding says the first one for ever.

use std::collections::BTreeMap;
use std::path::Path;

use finch::model::builtin;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Writes it into `folder`, with room for `context` tokens.
pub fn write(folder: &Path, context: usize) {
    for name in ["tokenizer.json", "chat_template.jinja", "generation_config.json"] {
        std::fs::write(folder.join(name), builtin::file(name).unwrap()).unwrap();
    }
    let mut config: serde_json::Value = serde_json::from_slice(builtin::file("config.json").unwrap()).unwrap();
    config["max_position_embeddings"] = context.into();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let real = safetensors::SafeTensors::deserialize(builtin::file("model.safetensors").unwrap()).unwrap();
    let size = |shape: &[usize]| shape.iter().product::<usize>();
    let longest = real.tensors().iter().map(|(_, tensor)| size(tensor.shape())).max().unwrap();
    let zeros = vec![0; 2 * longest];
    let mut tensors = BTreeMap::new();
    for (name, tensor) in real.tensors() {
        let shape = tensor.shape().to_vec();
        let bytes = &zeros[..2 * size(&shape)];
        tensors.insert(name, TensorView::new(Dtype::BF16, shape, bytes).unwrap());
    }
    safetensors::serialize_to_file(tensors, None, &folder.join("model.safetensors")).unwrap();
}
