use std::collections::HashSet;
use std::fmt::Write;
use std::path::Path;

use super::*;

#[test]
fn names_are_one_to_one_sorted_and_found() {
    let mut seen = HashSet::new();
    for preset in Preset::ALL {
        for name in preset.names() {
            assert!(seen.insert(name), "{name}");
            assert_eq!(Preset::by_name(name).unwrap(), preset);
        }
    }
    assert!(Preset::ALL.is_sorted_by_key(|preset| preset.name));
    assert_eq!(Preset::by_name(" PixArt_Alpha ").unwrap().max_length, 120);
    assert_eq!(Preset::by_name("pixart").unwrap().name, "pixart-sigma");
}

#[test]
fn an_unknown_name_lists_the_known_ones() {
    let error = Preset::by_name("hunyan").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("allegro, auraflow, bria"));
    assert_eq!(error.hint_text(), Some("did you mean `hunyuan`?"));
    assert_eq!(Preset::by_name("qwertyuiop").unwrap_err().hint_text(), None);
}

#[test]
fn every_contract_agrees_with_itself() {
    for preset in Preset::ALL {
        let name = preset.name;
        let zero = preset.pad_rows == PadRows::Zero;
        assert_eq!(zero, preset.tail != Tail::Kept, "{name}");
        let unpadded = preset.padding == Padding::None;
        assert_eq!(unpadded, preset.tail == Tail::Appended, "{name}");
        assert!(!(unpadded && preset.attention_mask), "{name}");
        // Whoever does not look at padding has to be told where it is.
        let blind = preset.pads_seen == PadsSeen::None;
        assert!(!blind || preset.mask_out == MaskOut::Tokens, "{name}");
        assert!(preset.max_length > 0 && preset.truncation, "{name}");
        assert!(preset.source.contains("/pipeline_"), "{name}");
    }
}

#[test]
fn masks_and_lengths_follow_the_contract() {
    let by_name = |name| Preset::by_name(name).unwrap();
    let tokens = vec![true, true, false];
    assert_eq!(
        by_name("flux").padded_mask(tokens.clone()),
        PaddedMask::None
    );
    for name in ["wan", "bria"] {
        assert_eq!(
            by_name(name).padded_mask(tokens.clone()),
            PaddedMask::Keys(tokens.clone())
        );
    }
    assert_eq!(by_name("wan").image_mask(1, 3), None);
    assert_eq!(
        by_name("mochi").image_mask(1, 3),
        Some(vec![true, false, false])
    );
    assert_eq!(
        by_name("chroma").image_mask(1, 3),
        Some(vec![true, true, false])
    );
    assert_eq!(by_name("wan").output_length(&[7, 9]), 512);
    assert_eq!(by_name("latte").output_length(&[7]), 7);
    assert_eq!(by_name("latte").output_length(&[7, 9]), 120);
    assert_eq!(by_name("kandinsky3").output_length(&[7, 9]), 10);
    assert_eq!(by_name("kandinsky3").output_length(&[7, 128]), 128);
    let needed: Vec<&str> = Preset::ALL
        .iter()
        .filter(|preset| preset.needs_pad_rows())
        .map(|preset| preset.name)
        .collect();
    let expected = [
        "chroma",
        "cogvideox",
        "cogview3",
        "flux",
        "hidream",
        "if",
        "sd3",
    ];
    assert_eq!(needed, expected);
}

#[test]
fn the_family_is_checked() {
    let wan = Preset::by_name("wan").unwrap();
    assert!(wan.check_family(Family::Umt5).is_ok());
    let error = wan.check_family(Family::T5).unwrap_err();
    assert_eq!(
        error.message(),
        "the model is `t5`, but preset `wan` expects UMT5"
    );
    let hunyuan = Preset::by_name("hunyuan").unwrap();
    assert!(hunyuan.check_family(Family::T5).is_ok());
}

/// The part of the page that is made from the table, between its two marks.
fn tables() -> String {
    let mut page = String::from(
        "| preset | encoder | cleaning | tokenizer | length | filled up | T5 mask | T5 at padding \
         | positions out | mask out | padding seen |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let yes_no = |yes: bool| if yes { "yes" } else { "no" };
    for p in Preset::ALL {
        let tail = match p.tail {
            Tail::Kept => "computed, kept",
            Tail::TimesMask => "zero (times mask)",
            Tail::Zeroed => "zero (set)",
            Tail::Appended => "zero (appended)",
        };
        let length = match p.length {
            OutputLength::Full => "all",
            OutputLength::LongestPlusOne => "longest row + 1",
            OutputLength::TokensIfAlone => "tokens if one row, else all",
        };
        let mask = match p.mask_out {
            MaskOut::None => "none",
            MaskOut::Tokens => "tokens",
            MaskOut::TokensAndFirstPad => "tokens and first padding",
        };
        writeln!(
            page,
            "| `{}` | {} | {} | {} | {} | {} | {} | {tail} | {length} | {mask} | {} |",
            p.name,
            p.encoder.name(),
            p.cleaning.name(),
            p.tokenizer.name(),
            p.max_length,
            yes_no(p.padding == Padding::MaxLength),
            yes_no(p.attention_mask),
            yes_no(p.pads_seen == PadsSeen::All),
        )
        .unwrap();
    }
    page.push_str("\n| preset | also called | read in `diffusers/pipelines` | to know |\n| --- | --- | --- | --- |\n");
    for p in Preset::ALL {
        let aliases: Vec<String> = p.aliases.iter().map(|name| format!("`{name}`")).collect();
        let aliases = aliases.join(", ");
        writeln!(
            page,
            "| `{}` | {aliases} | {} | {} |",
            p.name, p.source, p.note
        )
        .unwrap();
    }
    page
}

/// With `QUINTIC_WRITE_DOCS` set it writes the tables instead of comparing them.
#[test]
fn the_page_of_presets_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/presets.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (start, end) = ("<!-- tables start -->\n", "<!-- tables end -->\n");
    let (before, rest) = page.split_once(start).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    let fresh = format!("{before}{start}{}{end}{after}", tables());
    if std::env::var_os("QUINTIC_WRITE_DOCS").is_some() {
        std::fs::write(&path, fresh).unwrap();
    } else {
        assert!(
            page == fresh,
            "docs/presets.md is stale; run this test with QUINTIC_WRITE_DOCS=1"
        );
    }
    for cleaning in Cleaning::ALL {
        assert!(page.contains(&format!("`{}`", cleaning.name())));
    }
}
