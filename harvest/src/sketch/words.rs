//! The closed word classes of the language. Each class lists its members once, with the words that name them.

/// Declares an enum whose members are words (or two words) of the language.
macro_rules! word_class {
    ($(#[$doc:meta])* $name:ident { $($(#[$member_doc:meta])* $member:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$member_doc])* $member),+ }

        impl $name {
            /// Every member, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$member),+];

            /// The words that stand for this member in a text, lower case.
            pub fn words(self) -> &'static str {
                match self { $(Self::$member => $word),+ }
            }
        }
    };
}

word_class! {
    /// How large a thing is said to be.
    Size {
        /// `small`
        Small = "small",
        /// `big`
        Big = "big",
    }
}

word_class! {
    /// What colour a thing is said to have; drawn as a tone of grey.
    Colour {
        /// `red`
        Red = "red",
        /// `green`
        Green = "green",
        /// `blue`
        Blue = "blue",
        /// `yellow`
        Yellow = "yellow",
    }
}

word_class! {
    /// The form of a thing.
    Shape {
        /// `circle`
        Circle = "circle",
        /// `square`
        Square = "square",
        /// `triangle`, apex up
        Triangle = "triangle",
        /// `cross`, drawn as a diagonal cross
        Cross = "cross",
    }
}

word_class! {
    /// Where one thing is, seen from another.
    Relation {
        /// `left of`
        LeftOf = "left of",
        /// `right of`
        RightOf = "right of",
        /// `above`
        Above = "above",
        /// `below`
        Below = "below",
        /// `inside`
        Inside = "inside",
    }
}

word_class! {
    /// The outermost thing of a scene on one side.
    Extreme {
        /// `leftmost`
        Leftmost = "leftmost",
        /// `rightmost`
        Rightmost = "rightmost",
        /// `highest`
        Highest = "highest",
        /// `lowest`
        Lowest = "lowest",
    }
}
