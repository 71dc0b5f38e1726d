//! Texts to compare ways to compute over, if a user has none.

/// Captions, instructions and sentences in a dozen languages, from one word to two hundred.
pub const PROMPTS: [&str; 24] = [
    "cat",
    "A photo of a red apple on a wooden table.",
    "three ceramic mugs, studio light, 85mm",
    "translate English to German: The house is wonderful, but the roof leaks.",
    "cola sentence: The course is jumping well.",
    "Answer the following question. If it takes four hours to dry four shirts in the sun, how \
     long does it take to dry eight?",
    "query: who wrote the opera about a barber, and in which year was it first performed?",
    "An old lighthouse on a cliff above a stormy sea at dusk, waves breaking on black rocks, a \
     single light in the window, seagulls in the wind, oil on canvas, thick strokes, muted blues \
     and greys with one warm accent.",
    "A poster in bold hand-painted letters that reads \"OPEN 24/7 — FRESH BREAD\" above a bakery \
     door; 3 bicycles lean on the wall, $4.50 is chalked on a slate, rain.",
    "def area(radius: float) -> float:\n    return 3.14159 * radius ** 2",
    "summarize: The council met on Tuesday to discuss the bridge. Two members argued that the \
     repairs, now estimated at 12.4 million, should wait until the new survey is done; the others \
     pointed out that the old survey was only three years old, that winter would make the cracks \
     worse, and that a closed bridge would cut off the school on the far bank. After four hours, \
     in which residents spoke as well, the council voted seven to two to begin in March, to keep \
     one lane open for buses and ambulances, and to publish the costs every month. The mayor, who \
     had been expected to abstain, voted with the majority and said afterwards that she had \
     changed her mind when a bus driver described what the detour would mean for his passengers. \
     The opposition announced that it would ask an auditor to look at the tender.",
    "The camera glides slowly over a terraced rice field at sunrise; mist lies in the valley, \
     water mirrors a pale pink sky, and a farmer in a straw hat leads a buffalo along the narrow \
     dyke. As the light grows, the green of the young plants becomes brighter, small birds rise \
     from the reeds, and far behind the hills a train crosses a stone viaduct. Cinematic, shallow \
     depth of field, natural colours, gentle wind, 24 frames a second.",
    "Ein gelbes Fahrrad lehnt an einer Backsteinmauer, davor liegt nasses Laub.",
    "Dans la cuisine, ma grand-mère prépare des crêpes pendant que le chat dort près du poêle.",
    "El tren de las ocho sale con veinte minutos de retraso por la nieve en los Pirineos.",
    "Um barco pequeno atravessa a baía ao amanhecer, com velas brancas e água calma.",
    "Una piazza vuota sotto il sole di mezzogiorno, ombre lunghe, stile metafisico.",
    "O casă veche din lemn, la marginea pădurii, cu ferestre albastre.",
    "Старый трамвай поворачивает у моста, на стёклах иней, за рекой дымят трубы.",
    "一只熊猫坐在竹林里喝茶,水墨画风格,远处有山和薄雾。",
    "雨の夜、ネオンの光が濡れた路地に映り、傘をさした人が歩いている。",
    "눈 덮인 산길을 따라 여우 한 마리가 조용히 걷는다.",
    "سوق قديم مليء بالتوابل والأقمشة الملونة تحت ضوء الظهيرة",
    "नदी के किनारे एक छोटा मंदिर, पीछे बर्फ से ढके पहाड़।",
];

#[cfg(test)]
mod tests {
    use super::PROMPTS;

    #[test]
    fn prompts_are_clean_and_distinct() {
        for (place, prompt) in PROMPTS.iter().enumerate() {
            assert_eq!(prompt.trim(), *prompt);
            // A lost backslash at the end of a line would leave its indentation.
            assert!(!prompt.contains("     "), "{prompt}");
            assert!(!PROMPTS[..place].contains(prompt), "{prompt}");
        }
    }
}
