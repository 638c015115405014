use proptest::prelude::*;

use super::*;

/// Rows 12 to 19 of the picture, where a scene of one row of things stands.
fn middle_rows(text: &str) -> Vec<String> {
    let lines = format!("{:?}", draw(text).unwrap());
    lines.lines().skip(12).take(8).map(str::to_owned).collect()
}

#[test]
fn a_claim_is_drawn_over_the_scene() {
    // Paper is 4, red 6, blue 8; small is 4 pixels, big is 7.
    assert_eq!(
        middle_rows("The big red square is left of the small blue triangle."),
        [
            "44444444666666644444444444444444",
            "44444444666666644444444444444444",
            "44444444666666644448844444444444",
            "44444444666666644448844444444444",
            "44444444666666644488884444444444",
            "44444444666666644488884444444444",
            "44444444666666644444444444444444",
            "44444444444444444444444444444444",
        ]
    );
    // What holds a thing is a rim; the light of the claim (one grey more) lies left of the triangle's cell; the
    // subject is white (g) in the light.
    let held = "The big red square is left of the small blue triangle. The cross is inside the red square.";
    assert_eq!(
        middle_rows(&format!("{held} The cross is left of the triangle.")),
        [
            "55555555777777754444444444444444",
            "55555555755555754444444444444444",
            "5555555575g5g5754448844444444444",
            "55555555755g55754448844444444444",
            "5555555575g5g5754488884444444444",
            "55555555755555754488884444444444",
            "55555555777777754444444444444444",
            "55555555555555554444444444444444",
        ]
    );
    // And black (0) in the dark.
    assert_eq!(
        middle_rows(&format!("{held} The cross is right of the triangle.")),
        [
            "44444444666666644444444455555555",
            "44444444644444644444444455555555",
            "44444444640404644448844455555555",
            "44444444644044644448844455555555",
            "44444444640404644488884455555555",
            "44444444644444644488884455555555",
            "44444444666666644444444455555555",
            "44444444444444444444444455555555",
        ]
    );
}

#[test]
fn the_feature_and_the_png_hold_the_same_greys() {
    let picture =
        draw("The red circle is above the blue square. The circle is below the square.").unwrap();
    let feature = picture.feature();
    assert_eq!(feature.len(), 1_024);
    assert!(
        feature
            .iter()
            .all(|grey| (grey * 16.0).fract() == 0.0 && (0.0..=1.0).contains(grey))
    );
    let file = picture.png();
    let mut reader = png::Decoder::new(std::io::Cursor::new(file))
        .read_info()
        .unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((frame.width, frame.height), (32, 32));
    assert_eq!(
        (frame.color_type, frame.bit_depth),
        (png::ColorType::Grayscale, png::BitDepth::Eight)
    );
    let from_file: Vec<f32> = pixels
        .iter()
        .map(|&pixel| (f32::from(pixel) * 16.0 / 255.0).round() / 16.0)
        .collect();
    assert_eq!(from_file, feature);
}

#[test]
fn errors_quote_the_sentence_and_say_what_was_expected() {
    let cases = [
        (
            " \n",
            "cannot draw an empty text: expected at least one sentence",
        ),
        (
            "The red circle is above the square. The cat sat on the mat.",
            "cannot draw the sentence `The cat sat on the mat.`: expected a size, a colour, a form, `shape` or a \
             word such as `leftmost`, found `cat`",
        ),
        (
            "The red circle is near the square.",
            "cannot draw the sentence `The red circle is near the square.`: expected `left of`, `right of`, \
             `above`, `below`, `inside`, a colour or a size, found `near`",
        ),
        (
            "The red circle is left of the square",
            "cannot draw the sentence `The red circle is left of the square`: expected `.`, found the end of the text",
        ),
        (
            "The big shape is red.",
            "cannot draw the sentence `The big shape is red.`: nothing described before it is `the big shape`",
        ),
        (
            "The lowest shape is red.",
            "cannot draw the sentence `The lowest shape is red.`: `the lowest shape` is known only once the scene \
             is complete",
        ),
        (
            "The circle is above the square. The square is above the circle. The circle is red.",
            "cannot draw the sentence `The square is above the circle.`: it contradicts the sentences before it, or \
             itself",
        ),
        (
            "The circle is red. The circle is inside the square. The circle is inside the cross. The circle is red.",
            "cannot draw the sentence `The circle is inside the cross.`: one thing fits inside another, not two, and \
             not one inside one inside one",
        ),
        (
            "The circle is above the square. The square is above the cross. The cross is above the triangle. The \
             triangle is above the red cross. The circle is red.",
            "cannot draw the sentence `The triangle is above the red cross.`: the scene is more than 4 things wide or \
             high",
        ),
    ];
    for (text, message) in cases {
        let error = draw(text).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert!(error.hint().is_some());
    }
}

/// Column and row of each thing, in order of mention.
fn cells(text: &str) -> Vec<(usize, usize)> {
    let (mut scene, mut layout) = (Scene::default(), Layout::default());
    for sentence in parse(text).unwrap() {
        scene.describe(sentence).unwrap();
        layout = Layout::solve(&scene, sentence).unwrap();
    }
    layout
        .cells
        .iter()
        .map(|cell| (cell.column, cell.row))
        .collect()
}

#[test]
fn what_is_not_said_is_filled_in() {
    // Nothing orders the two circles: the later one goes to the right.
    let tied = "The red circle is left of the square. The blue circle is left of the square.";
    assert_eq!(cells(tied), [(0, 0), (2, 0), (1, 0)]);
    // What is related on one axis is aligned on the other.
    let corner = "The circle is left of the square. The cross is above the square.";
    assert_eq!(cells(corner), [(0, 1), (1, 1), (1, 0)]);
    // Unless that contradicts what was said.
    let stairs = "The circle is left of the square. The circle is above the square.";
    assert_eq!(cells(stairs), [(0, 0), (1, 1)]);
    // What is inside a thing stands where the thing does.
    let held = "The cross is inside the circle. The square is right of the cross.";
    assert_eq!(cells(held), [(0, 0), (0, 0), (1, 0)]);
}

fn member<M: Copy + std::fmt::Debug>(class: &'static [M]) -> impl Strategy<Value = M> {
    proptest::sample::select(class)
}

fn description() -> impl Strategy<Value = Description> {
    let attributes = (
        proptest::option::of(member(Size::ALL)),
        proptest::option::of(member(Colour::ALL)),
        proptest::option::weighted(0.8, member(Shape::ALL)),
    );
    attributes.prop_map(|(size, colour, shape)| Description {
        size,
        colour,
        shape,
    })
}

fn sentence() -> impl Strategy<Value = Sentence> {
    let subject = prop_oneof![
        4 => description().prop_map(Subject::Described),
        1 => member(Extreme::ALL).prop_map(Subject::Extreme),
    ];
    let predicate = prop_oneof![
        4 => (member(Relation::ALL), description()).prop_map(|(relation, landmark)| Predicate::Related(relation, landmark)),
        1 => member(Colour::ALL).prop_map(Predicate::Coloured),
        1 => member(Size::ALL).prop_map(Predicate::Sized),
    ];
    (subject, predicate).prop_map(|(subject, predicate)| Sentence { subject, predicate })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(sentences in prop::collection::vec(sentence(), 1..6)) {
        let text: Vec<String> = sentences.iter().map(Sentence::to_string).collect();
        prop_assert_eq!(parse(&text.join(" ")).unwrap(), sentences.clone());
        prop_assert_eq!(parse(&text.join("\n\t").to_uppercase()).unwrap(), sentences);
    }

    #[test]
    fn any_text_of_the_language_is_drawn_or_refused_with_its_sentence(
        sentences in prop::collection::vec(sentence(), 1..12)
    ) {
        let text: Vec<String> = sentences.iter().map(Sentence::to_string).collect();
        match draw(&text.join(" ")) {
            Ok(picture) => prop_assert_eq!(draw(&text.join(" ")).unwrap(), picture),
            Err(error) => prop_assert!(text.iter().any(|sentence| error.to_string().contains(sentence.as_str()))),
        }
    }

    #[test]
    fn a_mutated_sentence_is_read_or_quoted(
        sentence in sentence(), position in 0usize..12, word in "\\PC{0,8}|the|of|\\.|red|circle", replaces in any::<bool>()
    ) {
        let text = sentence.to_string();
        let mut words: Vec<&str> = text.split(' ').collect();
        let position = position % words.len();
        words.splice(position..position + usize::from(replaces), [word.as_str()]);
        let mutated = words.join(" ");
        match parse(&mutated) {
            Ok(sentences) => prop_assert!(!sentences.is_empty()),
            Err(SketchError::Grammar { sentence, .. }) => {
                prop_assert!(!sentence.is_empty() && mutated.contains(&sentence));
            }
            Err(error) => prop_assert!(false, "{error}"),
        }
    }
}
