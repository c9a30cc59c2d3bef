//! GGUF files made for a test, byte by byte: good ones, and ones that no writer would write.

pub const U32: u32 = 4;
pub const TEXT: u32 = 8;

pub struct Builder {
    pub magic: [u8; 4],
    pub version: u32,
    pub alignment: u64,
    pub keys: Vec<Vec<u8>>,
    pub tensors: Vec<Vec<u8>>,
    pub data: Vec<u8>,
}

impl Default for Builder {
    fn default() -> Self {
        Builder { magic: *b"GGUF", version: 3, alignment: 32, keys: vec![], tensors: vec![], data: vec![] }
    }
}

#[allow(dead_code)] // each test file uses a part of this one
impl Builder {
    /// A key with the bytes of its value as they stand in the file.
    pub fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.keys.push([text(key), kind.to_le_bytes().to_vec(), value.to_vec()].concat());
        self
    }

    pub fn text(self, key: &str, value: &str) -> Self {
        self.raw(key, TEXT, &text(value))
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, U32, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub fn list(self, key: &str, kind: u32, length: u64, items: &[u8]) -> Self {
        self.raw(key, 9, &[&kind.to_le_bytes()[..], &length.to_le_bytes(), items].concat())
    }

    pub fn texts<S: AsRef<str>>(self, key: &str, values: &[S]) -> Self {
        let items: Vec<u8> = values.iter().flat_map(|value| text(value.as_ref())).collect();
        self.list(key, TEXT, values.len() as u64, &items)
    }

    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        let items: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.list(key, 5, values.len() as u64, &items)
    }

    /// A tensor behind those before it; `dims` fastest first.
    pub fn tensor(mut self, name: &str, dims: &[u64], kind: u32, bytes: &[u8]) -> Self {
        let offset = self.data.len().next_multiple_of(self.alignment as usize);
        self.data.resize(offset, 0);
        self.data.extend(bytes);
        self.tensor_at(name, dims, kind, offset as u64)
    }

    /// An F32 tensor.
    pub fn numbers(self, name: &str, dims: &[u64], numbers: &[f32]) -> Self {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.tensor(name, dims, 0, &bytes)
    }

    /// A tensor's entry alone.
    pub fn tensor_at(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        let dims_bytes: Vec<u8> = dims.iter().flat_map(|n| n.to_le_bytes()).collect();
        let rank = (dims.len() as u32).to_le_bytes();
        self.tensors.push([&text(name)[..], &rank, &dims_bytes, &kind.to_le_bytes(), &offset.to_le_bytes()].concat());
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let counts = [self.tensors.len() as u64, self.keys.len() as u64].map(u64::to_le_bytes);
        let mut bytes = [&self.magic[..], &self.version.to_le_bytes(), &counts.concat()].concat();
        bytes.extend(self.keys.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(self.alignment as usize), 0);
        bytes.extend(&self.data);
        bytes
    }
}

pub fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// The tokenizer of a `tokenizer.json`, as llama.cpp's converter writes it.
#[allow(dead_code)]
pub fn with_tokenizer(builder: Builder, json: &serde_json::Value) -> Builder {
    let content = |value: &serde_json::Value| value.as_str().unwrap().to_string();
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let added = json["added_tokens"].as_array().unwrap();
    let added: Vec<(u64, String, i32)> = added
        .iter()
        .map(|a| (a["id"].as_u64().unwrap(), content(&a["content"]), if a["special"] == true { 3 } else { 4 }))
        .collect();
    let highest = added.iter().map(|(id, ..)| *id).chain(vocab.values().filter_map(|id| id.as_u64())).max().unwrap();
    let mut tokens: Vec<(String, i32)> = (0..=highest).map(|id| (format!("[PAD{id}]"), 5)).collect();
    for (token, id) in vocab {
        tokens[id.as_u64().unwrap() as usize] = (token.clone(), 1);
    }
    for (id, token, kind) in added {
        tokens[id as usize] = (token, kind);
    }
    let merges: Vec<String> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|merge| match merge.as_array() {
            Some(pair) => format!("{} {}", content(&pair[0]), content(&pair[1])),
            None => content(merge),
        })
        .collect();
    let (tokens, types): (Vec<String>, Vec<i32>) = tokens.into_iter().unzip();
    builder
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "qwen2")
        .texts("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &types)
        .texts("tokenizer.ggml.merges", &merges)
}
