"""Seven word problems of our own in GSM8K's schema; the last asks the first again."""

QUESTIONS = [
    ("Ann has 3 bags of 4 plums. How many plums does she have?", "3 * 4 = <<3*4=12>>12 plums.\n#### 12"),
    ("Bo sells 5 mugs at $7 each and pays $5 rent. What is left?", "5 * 7 = $35, 35 - 5 = $30.\n#### 30"),
    ("A mill grinds 1,250 kg a day. How much in 4 days?", "4 * 1250 = 5000 kg.\n#### 5,000"),
    ("Cy owes $18 and pays back half. What is his debt now?", "18 / 2 = 9.\n#### 9"),
    ("It was 4 degrees and fell by 6. How warm is it?", "4 - 6 = -2.\n#### -2"),
    ("Di reads 10 pages a day for a week and then 7 more. How many pages in all?", "70 + 7 = 77.\n#### 77"),
    ("Ann has 3 bags of 4 plums. How many plums does she have?", "The question again.\n#### 12"),
]
