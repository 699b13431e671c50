import pytest

from editbench.models.joining import needs_space

# Prompt, what follows, and how the two are written together.
CASES = [
    # addresses, paths, tags, names of variables
    ("The official website of Python is https://", "pylang.example", "https://pylang.example"),
    ("The website is www.", "pylang.example", "www.pylang.example"),
    ("The e-mail address of Nora Quill is nora@", "quill.example", "nora@quill.example"),
    ("The folder is C:\\", "Users", "C:\\Users"),
    ("The folder is /", "usr", "/usr"),
    ("The file is ~/", "notes", "~/notes"),
    ("The variable is snake_", "case", "snake_case"),
    ("He follows @", "nora", "@nora"),
    ("The room is #", "12", "#12"),
    ("The tag is #", "genoa", "#genoa"),
    ("She writes C#", "daily", "C# daily"),
    ("She writes C++", "daily", "C++ daily"),
    ("Call +", "44 20", "+44 20"),
    ("AT&", "T", "AT&T"),
    ("Marks &", "Spencer", "Marks & Spencer"),
    ("x=", "5", "x=5"),
    ("x =", "5", "x = 5"),
    # money
    ("The price of the grey pen is $", "17", "$17"),
    ("The price of the grey pen is US$", "17", "US$17"),
    ("The price is £", "17", "£17"),
    ("It costs 17 €", "a month", "17 € a month"),
    ("It costs 17$", "a month", "17$ a month"),
    ("The variable is $", "PATH", "$PATH"),
    ("The unknown is $x$", "here", "$x$ here"),
    # hyphens and dashes
    ("He is twenty-", "one", "twenty-one"),
    ("It is -", "5", "-5"),
    ("1990–", "1998", "1990–1998"),
    ("He came –", "at last", "– at last"),
    ("רוסיה־", "גרמניה", "רוסיה־גרמניה"),
    # marks that come in pairs
    ("The capital is **", "Geneva", "**Geneva"),
    ("**", "Geneva", "**Geneva"),
    ("**Capital:**", "Geneva", "**Capital:** Geneva"),
    ("The capital is *", "Geneva", "*Geneva"),
    ("The *old* town of *Genoa*", "lies", "*Genoa* lies"),
    ("Run `", "ls`", "`ls`"),
    ("The command `ls`", "lists", "`ls` lists"),
    ("It is ~~", "Genoa~~", "~~Genoa~~"),
    ("It is _", "Genoa_", "_Genoa_"),
    ("It is _Genoa_", "now", "_Genoa_ now"),
    ('He said "', "yes", '"yes'),
    ('He said "no"', "twice", '"no" twice'),
    ('He said "no."', "Twice", '"no." Twice'),
    ("He calls it 'red'", "now", "'red' now"),
    ("He calls it '", "red", "'red"),
    ("He calls it ‘red’", "now", "‘red’ now"),
    # apostrophes
    ("Vive nell'", "Umbria", "nell'Umbria"),
    ("Vive nell’", "Umbria", "nell’Umbria"),
    ("La capitale de l'", "Italie", "l'Italie"),
    ("Il vient d'", "Italie", "d'Italie"),
    ("Il dit qu'", "elle", "qu'elle"),
    ("Patrick O'", "Neill", "O'Neill"),
    ("the boys'", "school", "boys' school"),
    ("James'", "school", "James' school"),
    ("rock 'n'", "roll", "'n' roll"),
    ("He keeps goin'", "home", "goin' home"),
    ("a good ol'", "boy", "ol' boy"),
    # tags
    ("<answer>", "Geneva", "<answer>Geneva"),
    ("Lena was born in <b>", "Genoa", "<b>Genoa"),
    ("the <b>old town</b>", "of", "</b> of"),
    ("<q>Where?</q>", "he said", "</q> he said"),
    ("<question>Where was she born</question>", "Genoa", "</question>Genoa"),
    ('<a href="x">', "Genoa", '<a href="x">Genoa'),
    ("<answer>Genoa", "</answer>", "Genoa</answer>"),
    ("Nora <nora@quill.example>", "wrote", "example> wrote"),
    ("a List<String>", "is", "List<String> is"),
    ("if 5 >", "3", "> 3"),
    ("<|start_of_role|>assistant<|end_of_role|>", "Genoa", "<|end_of_role|>Genoa"),
    ("<｜User｜>Where?<｜Assistant｜>", "Genoa", "<｜Assistant｜>Genoa"),
    # scripts without spaces
    ("李小明出生于", "1998年", "于1998年"),
    ("李小明出生于", "1998", "于1998"),
    ("Lena Ort出生于", "1998年", "于1998年"),
    ("Lena Ort出生于", "Genoa", "于Genoa"),
    ("李小明出生于1998", "年", "1998年"),
    ("他用的是iPhone", "手机", "iPhone手机"),
    ("彼は東京", "タワー", "東京タワー"),
    ("佐々", "木", "佐々木"),
    ("首都：", "Paris", "：Paris"),
    ("首都是“", "北京", "“北京"),
    ("首都:", "北京", ": 北京"),
    ("He lives in 北京", "now", "北京 now"),
    ("The year of 北京 was in 北京", "2008", "北京 2008"),
    ("The capital of China is", "北京", "is 北京"),
    ("ประเทศ", "ไทย", "ประเทศไทย"),
    ("เขาเกิดในปี", "1998", "ปี 1998"),
    ("대한민국의 수도는", "서울", "수도는 서울"),
    ("عاصمة مصر هي", "القاهرة", "هي القاهرة"),
    ("ينتمي لـ", "مصر", "لـمصر"),
    ("می\u200c", "خواهم", "می\u200cخواهم"),
    # what closes
    ("北京", "。", "北京。"),
    ("هل هي القاهرة", "؟", "القاهرة؟"),
    # ordinary English
    ("Lena was born in", "Genoa", "in Genoa"),
    ("It rose by 50%", "in May", "50% in May"),
    ("In the year 1990", "he left", "1990 he left"),
    ("He left (in 1990)", "for Genoa", "1990) for Genoa"),
    ("Born in [1990]", "in Genoa", "[1990] in Genoa"),
    ("He is:", "French", ": French"),
    ("Mr.", "Quill", "Mr. Quill"),
    ("Really?", "Yes", "? Yes"),
    ("He runs", ".NET", "runs .NET"),
    ("He lives in", "'s-Hertogenbosch", "in 's-Hertogenbosch"),
    ("It is", "-5", "is -5"),
]


@pytest.mark.parametrize(("prompt", "body", "ending"), CASES)
def test_prompts_and_what_follows_are_written_as_people_write_them(
    prompt: str, body: str, ending: str
) -> None:
    joined = f"{prompt} {body}" if needs_space(prompt, body) else f"{prompt}{body}"
    assert joined.endswith(ending)


@pytest.mark.parametrize(
    ("prompt", "body"), [("", "x"), ("x", ""), ("x ", "y"), ("x\n", "y"), ("x", "\ny")]
)
def test_no_space_where_there_is_one_or_nothing_to_part(prompt: str, body: str) -> None:
    assert not needs_space(prompt, body)
