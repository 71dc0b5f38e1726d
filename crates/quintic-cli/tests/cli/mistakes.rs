//! What people get wrong, and what the command answers.

use super::support::{Model, golden, run, run_with, write_integers};

#[test]
fn models_that_are_not_there() {
    let model = Model::bytes();
    let out = model.path("out.npy");
    let encode = |path: &str| run(&["encode", "--model", path, "-o", &out, "hi"]);
    encode(&model.path("nowhere")).fails(4, &["nowhere"]);
    encode("no-such-org/no-such-model").fails(4, &["no-such-org/no-such-model"]);
    encode(&model.path("")).fails(4, &["model.safetensors", "pytorch_model.bin"]);
    let text = model.write("readme.md", "a model");
    encode(&text).fails(9, &["readme.md"]);
    run(&[
        "encode",
        "--model",
        &model.path("model"),
        "--variant",
        "fp16",
        "-o",
        &out,
        "hi",
    ])
    .fails(4, &["fp16"]);
    run(&[
        "encode",
        "--model",
        &model.path("model"),
        "--subfolder",
        "te",
        "-o",
        &out,
        "hi",
    ])
    .fails(4, &["te"]);
    let file = model.path("model/model.safetensors");
    run(&[
        "encode", "--model", &file, "--prefix", "te.", "-o", &out, "hi",
    ])
    .fails(8, &["no tensor has the prefix `te.`, the first names are"]);
    std::fs::remove_file(model.file("model/config.json")).unwrap();
    // Without a config the tensors' shapes say what there is.
    encode(&model.path("model")).good();
}

#[test]
fn outputs_that_cannot_be_written() {
    let model = Model::bytes();
    let encode = |out: &str, args: &[&str]| model.encode(out, &[args, &["hi"]].concat());
    let folder = model.path("none");
    encode("none/out.npy", &[]).fails(4, &[&format!("error: {folder}: cannot create a file")]);
    std::fs::create_dir(model.file("folder.npy")).unwrap();
    encode("folder.npy", &[]).fails(3, &["folder.npy: is a folder, expected a file name"]);
    encode("out.pt", &[]).fails(
        9,
        &["out.pt: found the ending `.pt`, expected .safetensors, .npy or .jsonl"],
    );
    encode("out", &[]).fails(
        9,
        &["out: the name has no ending, expected .safetensors, .npy or .jsonl"],
    );
    encode("out.npy", &["--output-dtype", "bf16"]).fails(
        9,
        &[
            "out.npy: NumPy has no type bf16",
            "hint: write f32 or f16, or a .safetensors",
        ],
    );
    encode("out.npy", &["--hidden-states"]).fails(
        9,
        &[
            "out.npy: .npy holds one array, not every layer's",
            "hint: write a .safetensors",
        ],
    );
    encode("out.jsonl", &["--hidden-states"]).fails(9, &["a JSON line holds one array"]);
    encode("out.jsonl", &["--output-dtype", "f16"]).fails(
        9,
        &[
            "out.jsonl: JSON lines hold f32 values, not f16",
            "hint: drop `--output-dtype`",
        ],
    );
    let args = [
        "encode",
        "--model",
        &model.path("model"),
        "-o",
        "-",
        "--json",
        "hi",
    ];
    run(&args).fails(
        8,
        &["`--json` and `--output -` would both write to standard output"],
    );
    assert_eq!(model.listing(), ["folder.npy", "model"]);
}

#[cfg(unix)]
#[test]
fn folders_that_may_not_be_written() {
    use std::os::unix::fs::PermissionsExt;
    let model = Model::bytes();
    std::fs::create_dir(model.file("closed")).unwrap();
    let set = |mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(model.file("closed"), permissions).unwrap();
    };
    set(0o555);
    let ran = model.encode("closed/out.npy", &["hi"]);
    // Root may write anywhere.
    let allowed = std::fs::write(model.file("closed/probe"), "").is_ok();
    set(0o755);
    if !allowed {
        ran.fails(
            3,
            &["closed: cannot create a file in the folder: Permission denied"],
        );
    }
}

#[test]
fn texts_that_cannot_be_read() {
    let model = Model::bytes();
    let encode = |input: &str| model.encode("out.npy", &["--input", input]);
    encode(&model.write("empty.txt", "")).fails(8, &["empty.txt: there are no texts"]);
    encode(&model.write("head.tsv", "text\n")).fails(8, &["head.tsv: there are no texts"]);
    encode(&model.write("bad.txt", b"good\nb\xff\n"))
        .fails(8, &["bad.txt: line 2: byte 2 is 0xff, which is not UTF-8"]);
    encode(&model.write("in.csv", "a,b\n")).fails(
        9,
        &["in.csv: found the ending `.csv`, expected .txt, .tsv or .jsonl"],
    );
    encode(&model.write("texts", "a\n")).fails(9, &["texts: the name has no ending"]);
    encode(&model.path("none.txt")).fails(4, &["none.txt: cannot read the texts: No such file"]);
    encode(&model.path("model")).fails(3, &["model: cannot read the texts: Is a directory"]);
    encode(&model.write("in.tsv", "a\tb\n1\t2\n")).fails(
        8,
        &[
            "in.tsv: line 1: no column is named text, prompt,",
            "hint: choose one by",
        ],
    );
    encode(&model.write("in.jsonl", "{\"text\": 3}\n"))
        .fails(8, &["in.jsonl: line 1: field `text` is 3, expected a text"]);
    encode(&model.write("cut.jsonl", "\"a\"\n{\"text\": \n"))
        .fails(8, &["cut.jsonl: line 2: not valid JSON: EOF while parsing"]);
    let args = [
        "encode",
        "--model",
        &model.path("model"),
        "-o",
        &model.path("o.npy"),
        "--input",
    ];
    run_with(&[&args[..], &["-"]].concat(), b"").fails(8, &["standard input: there are no texts"]);
    run_with(&[&args[..], &["-"]].concat(), b"\xfe")
        .fails(8, &["standard input: line 1: byte 1 is"]);
    let txt = model.write("in.txt", "a\n");
    run(&[&args[..], &[&txt, "--column", "a"]].concat()).fails(8, &["a .txt file has no columns"]);
    // An empty text is a text: its end token.
    model.encode("o.safetensors", &[""]).good();
    assert_eq!(model.floats("o.safetensors", "last_hidden_state").0, [1, 8]);
}

#[test]
fn ids_and_masks_that_do_not_fit() {
    let model = Model::bytes();
    let fails =
        |tensors: &[(&str, &str, &[usize], &[i64])], args: &[&str], code, parts: &[&str]| {
            let ids = model.file("ids.safetensors");
            write_integers(&ids, tensors);
            let args = [&["--input-ids", ids.to_str().unwrap()], args].concat();
            model.encode("out.npy", &args).fails(code, parts);
        };
    let two = ("input_ids", "I64", &[1, 2][..], &[3, 1][..]);
    fails(
        &[("input_ids", "I64", &[2, 2], &[3, 1, 384, 1])],
        &[],
        8,
        &["error: row 1, token 0: token id 384 is outside the vocabulary, expected 0 to 383"],
    );
    fails(
        &[("input_ids", "I64", &[1, 2], &[3, -1])],
        &[],
        8,
        &["row 0, token 1: token id -1 is"],
    );
    fails(
        &[("input_ids", "I64", &[2], &[3, 1])],
        &[],
        8,
        &["ids.safetensors: `input_ids` has shape [2], expected [rows, len]"],
    );
    fails(
        &[("input_ids", "I64", &[0, 2], &[])],
        &[],
        8,
        &["expected at least one row of one token"],
    );
    fails(
        &[two, ("attention_mask", "I64", &[1, 3], &[1, 1, 1])],
        &[],
        8,
        &["`attention_mask` has shape [1, 3], expected [1, 2] to go with `input_ids`"],
    );
    fails(
        &[two, ("attention_mask", "I64", &[1, 3, 3], &[1; 9])],
        &[],
        8,
        &["`attention_mask` has shape [1, 3, 3], expected [1, 2, 2] to go with `input_ids`"],
    );
    for (dtype, value) in [("I64", 2), ("U8", 2), ("BOOL", 2), ("F32", 2)] {
        let message = "`attention_mask` holds 2 at element 1, expected 0 or 1";
        fails(
            &[two, ("attention_mask", dtype, &[1, 2], &[1, value])],
            &[],
            8,
            &[message],
        );
    }
    let mask = ("attention_mask", "I64", &[1, 2][..], &[1, 1][..]);
    let documents = ("document_ids", "I64", &[1, 2][..], &[0, 1][..]);
    fails(
        &[two, mask, documents],
        &[],
        8,
        &["both `attention_mask` and `document_ids`"],
    );
    fails(
        &[mask],
        &[],
        6,
        &["ids.safetensors: tensor `input_ids`: there is no such tensor"],
    );
    fails(
        &[two, ("position_ids", "I64", &[1, 2], &[0, 1])],
        &[],
        8,
        &["tensor `position_ids` is not one of `input_ids`, `attention_mask`, `document_ids`"],
    );
    fails(
        &[two, documents],
        &["--pool", "mean"],
        9,
        &["pooling needs one text a row"],
    );
    fails(
        &[two, mask],
        &["--pool", "mean", "--pad-rows", "compute"],
        8,
        &["drop `--pad-rows compute`"],
    );
    let text = model.write("ids.txt", "1 2 3 this is no safetensors file");
    model
        .encode("out.npy", &["--input-ids", &text])
        .fails(6, &["ids.txt: "]);
    model
        .encode("out.npy", &["--input-ids", &model.path("none")])
        .fails(4, &["none: cannot"]);
}

#[test]
fn requests_that_the_model_cannot_serve() {
    let model = Model::bytes();
    model
        .encode("out.npy", &["--pool", "sentence", "hi"])
        .fails(
            8,
            &[
                "`--pool sentence` needs a modules.json beside the model",
                "hint: `--pool mean` pools",
            ],
        );
    model
        .encode("out.npy", &["--backend", "abacus", "hi"])
        .fails(9, &["there is no backend `abacus` in this build, expected"]);
    model
        .encode("out.npy", &["--max-length", "0", "hi"])
        .fails(8, &["text 0: "]);
    let out = model.path("out.npy");
    run(&["encode", "--model", &golden("t5-v1_1"), "-o", &out, "hi"]).fails(
        4,
        &[
            "the model has no tokenizer beside it",
            "hint: name one by `--tokenizer`",
        ],
    );
    // A vocabulary of 64 with the tokenizer of one of 384.
    let args = [
        "encode",
        "--model",
        &golden("t5-v1_1"),
        "-o",
        &out,
        "!",
        "hi",
        "--tokenizer",
    ];
    run(&[&args[..], &[&model.path("model")]].concat()).fails(
        7,
        &[
            "text 1: the tokenizer gives token id 107, but the model's vocabulary ends at 63",
            "hint: is the tokenizer another model's?",
        ],
    );
    assert_eq!(model.listing(), ["model"]);
}
