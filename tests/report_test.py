from deit_tf import report

ROW = {"top1": 0.975, "top5": 1.0, "loss": 0.125}


def test_table_of_a_distilled_student():
    student = {"images": 397, "cls": ROW, "dist": ROW, "fused": {**ROW, "top1": 0.98}}
    teacher = {"images": 397, "cls": {**ROW, "top1": 0.99}, "fused": ROW}
    assert report.table(student, teacher).splitlines() == [
        "on 397 images           top-1    top-5     loss",
        "teacher                99.00%  100.00%   0.1250",
        "class head             97.50%  100.00%   0.1250",
        "distillation head      97.50%  100.00%   0.1250",
        "fusion                 98.00%  100.00%   0.1250",
    ]


def test_table_of_one_head():
    lines = report.table({"images": 5, "cls": ROW, "fused": ROW}).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["class head"]
